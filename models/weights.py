# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk to networks in memory and back: three folders, safetensors only."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models.config import NvilaConfig, QuantizationConfig
from nvila_ros.models.config_files import load_config, read_json, read_language, save_config
from nvila_ros.models.language import LanguageModel
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantization import PackedReader, packed_tensors
from nvila_ros.models.tokenizer import Tokenizer

PARTS = ("vision_tower", "mm_projector", "llm")
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
OTHER_PICKLES = ("training_args", "optimizer", "scheduler", "rng_state")  # hold no weights

# Entries of released files that have no place in the network: buffers, and heads that are not used.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".embeddings.position_ids")
IGNORED_PREFIXES = ("vision_model.head.", "head.")
TOWER_PREFIX = "vision_model."


def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Nvila, Tokenizer]:
    """Read a checkpoint folder straight to its device and dtype; all of it or a CheckpointError.

    The default dtype is float32 on a CPU and float16, as released inference uses, elsewhere.
    """
    folder, device = Path(folder), torch.device(device)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; point model_path at a checkpoint's folder")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    config = load_config(folder)
    tokenizer = Tokenizer.load(folder / "llm")
    tokenizer.add_tokens(
        config.time_token_format.format(t=index) for index in range(config.num_time_tokens)
    )
    with torch.device("meta"):
        model = Nvila(config)
    for part in PARTS:
        module = model.get_submodule(part)
        quantization = config.language.quantization if part == "llm" else None
        state = _read_part(folder / part, module, device, dtype, quantization)
        module.load_state_dict(state, assign=True)
    skipped_ids = tokenizer.padding_and_end_ids if config.skips_end_after_media else ()
    model.connect(tokenizer.media_ids, tokenizer.encode(config.frame_end_text), skipped_ids)
    return model.eval(), tokenizer


def save(
    folder: Path | str, model: Nvila, tokenizer: Tokenizer, dtype: torch.dtype | None = None
) -> None:
    """Write a network that `load` and Hugging Face's classes read; by default in its own dtype."""
    folder = Path(folder)
    dtype = dtype or model.dtype
    save_config(folder, model.config, str(dtype).removeprefix("torch."))
    tokenizer.save(folder / "llm")
    for part in PARTS:
        tensors = _stored_tensors(model.get_submodule(part), model.config, dtype)
        path = folder / part / SINGLE_FILE
        unfinished = path.with_suffix(".unfinished")
        save_file(tensors, unfinished, metadata={"format": "pt"})
        unfinished.replace(path)  # a reader never meets half a file


def load_language_model(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Only the decoder, from an `llm/` folder or from one that holds nothing else."""
    folder, device = Path(folder), torch.device(device)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; point at a decoder's folder")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    with torch.device("meta"):
        model = LanguageModel(read_language(folder / "config.json"))
    state = _read_part(folder, model, device, dtype, model.config.quantization)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _stored_tensors(
    module: nn.Module, config: NvilaConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A part's tensors under the keys of the layout; int4 stays int4, the rest gets `dtype`."""
    quantization = config.language.quantization
    replaced = PackedReader(module, quantization).replaced
    tensors = {
        key: tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in module.state_dict().items()
        if key not in replaced
    }
    for name, linear in module.named_modules():
        if isinstance(linear, W4A16Linear) and quantization is not None:
            for key, tensor in packed_tensors(quantization, linear).items():
                tensors[f"{name}.{key}"] = tensor.detach().to("cpu").contiguous()
    return tensors


def _read_part(
    folder: Path,
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    quantization: QuantizationConfig | None = None,
) -> dict[str, Tensor]:
    """All tensors of one part, each checked against the network before it is read."""
    packed = PackedReader(module, quantization)
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    expected = {key: shape for key, shape in wanted.items() if key not in packed.replaced}
    expected |= packed.shapes
    has_tied_head = "model.embed_tokens.weight" in expected and "lm_head.weight" not in expected
    state: dict[str, Tensor] = {}
    found: set[str] = set()
    unexpected: list[str] = []
    for path in _tensor_files(folder):
        for key, tensor in _read_file(path, expected, device):
            if tensor is not None:
                found.add(key)
                is_packed = key in packed.shapes
                state |= packed.add(path, key, tensor) if is_packed else {key: tensor.to(dtype)}
            elif not (_is_ignored(key) or (has_tied_head and key == "lm_head.weight")):
                unexpected.append(key)
    missing = sorted(expected.keys() - found)
    if missing or unexpected:
        raise CheckpointError(
            f"{folder} does not fit its config.json: {_summary('missing', missing)}"
            f"{_summary('not expected', unexpected)}copy the folder again, "
            "or load it with its own config"
        )
    return state


def _is_ignored(key: str) -> bool:
    return key.endswith(IGNORED_SUFFIXES) or key.startswith(IGNORED_PREFIXES)


def _summary(title: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{title}: {', '.join(keys[:3])}{more}; "


def _read_file(
    path: Path, expected: dict[str, tuple[int, ...]], device: torch.device
) -> Iterator[tuple[str, Tensor | None]]:
    """Each key of a file with its tensor, or None where the network has no place for it."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for stored in file.keys():  # noqa: SIM118 - the file is no mapping
                # Transformers 5 writes a tower without the prefix that released files have.
                key = stored if f"{TOWER_PREFIX}{stored}" not in expected else TOWER_PREFIX + stored
                if key not in expected:
                    yield key, None
                    continue
                shape = tuple(file.get_slice(stored).get_shape())
                if shape != expected[key]:
                    raise CheckpointError(
                        f"{path}: {key} has shape {shape}, config.json asks for {expected[key]}; "
                        "the weights and the config are not of one checkpoint"
                    )
                yield key, file.get_tensor(stored)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupt ({error}); copy it again") from None


def _tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of one part: one file, or the shards that the index lists."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing; a checkpoint has the folders {', '.join(PARTS)}"
        )
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).exists():
        names = sorted(set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
        absent = [name for name in names if not (folder / name).exists()]
        if absent or not names:
            raise CheckpointError(
                f"{folder}: {len(absent)} of {len(names)} shards of {INDEX_FILE} are missing"
                f"{': ' + ', '.join(absent[:3]) if absent else ''}; download them"
            )
        return [folder / name for name in names]
    pickles = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in PICKLE_SUFFIXES and not path.name.startswith(OTHER_PICKLES)
    )
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]} is a pickle, which can run code, and is refused; "
            f"convert it with: {_conversion_command(folder, pickles)}"
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; download the weights"
    )


def _conversion_command(folder: Path, pickles: list[str]) -> str:
    """A shell command that writes all tensors of pickles to one safetensors file beside them."""
    program = (
        "import sys, torch, safetensors.torch as s; "
        "s.save_file({k: v.contiguous().clone() for f in sys.argv[1:] for k, v in "
        "torch.load(f, map_location='cpu', weights_only=True).items()}, "
        f"'{SINGLE_FILE}', metadata={{'format': 'pt'}})"
    )
    names = " ".join(shlex.quote(name) for name in pickles)
    return f'cd {shlex.quote(str(folder))} && python -c "{program}" {names}'
