# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk to networks in memory and back: three folders, safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.config import LanguageConfig, QuantizationConfig
from nvila_ros.models.config_files import load_config, read_language
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.language import LanguageModel
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.part_files import PARTS, checkpoint_folder
from nvila_ros.models.part_files import tensor_files as tensor_files
from nvila_ros.models.quantization import PackedReader, packed_specifications, packed_tensors
from nvila_ros.models.quantization_int8 import Int8Reader, int8_specifications, int8_tensors
from nvila_ros.models.reading import PartReader, Source
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.writing import SHARD_BYTES, PartWriter, Specification


def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Nvila, Tokenizer]:
    """Read a checkpoint folder straight to its device and dtype; all of it or a CheckpointError.

    The default dtype is float32 on a CPU and float16, as released inference uses, elsewhere.
    Headers, names, shapes and the tokenizer are checked before the first weight is read.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    model, tokenizer, readers = open_checkpoint(folder)
    for part, reader in readers.items():
        model.get_submodule(part).load_state_dict(dict(reader.stream(dtype, device)), assign=True)
    config = model.config
    skipped_ids = tokenizer.padding_and_end_ids if config.skips_end_after_media else ()
    model.connect(tokenizer.media_ids, tokenizer.encode(config.frame_end_text), skipped_ids)
    return model.eval(), tokenizer


def default_dtype(device: torch.device) -> torch.dtype:
    """Of weights and activations, where nobody asked for another."""
    return torch.float32 if device.type == "cpu" else torch.float16


def open_checkpoint(
    folder: Path | str, sources: dict[str, list[Source]] | None = None
) -> tuple[Nvila, Tokenizer, dict[str, PartReader]]:
    """The network on the meta device, its tokenizer and what will read each part; all checked.

    `sources` are the files of parts that are not to be looked for, by part.
    """
    folder = checkpoint_folder(folder)
    config = load_config(folder)
    tokenizer = Tokenizer.load(folder / "llm")
    tokenizer.add_tokens(
        config.time_token_format.format(t=index) for index in range(config.num_time_tokens)
    )
    tokenizer.check_template(config.chat_template, config.language.vocab_size, folder / "llm")
    with torch.device("meta"):
        model = Nvila(config)
    readers = {}
    for part in PARTS:
        module = model.get_submodule(part)
        packed = quantized_reader(module, config.language)
        readers[part] = PartReader(folder / part, module, packed, (sources or {}).get(part))
    return model, tokenizer, readers


def quantized_reader(module: nn.Module, config: LanguageConfig) -> PackedReader | Int8Reader:
    """Of the quantized linears of one part; a float part has none of them."""
    is_decoder = isinstance(module, LanguageModel)
    return PackedReader(module, config.quantization) if is_decoder else Int8Reader(module)


def load_language_model(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Only the decoder, from an `llm/` folder or from one that holds nothing else."""
    folder, device = checkpoint_folder(folder), torch.device(device)
    dtype = dtype or default_dtype(device)
    with torch.device("meta"):
        model = LanguageModel(read_language(folder / "config.json"))
    reader = PartReader(folder, model, quantized_reader(model, model.config))
    model.load_state_dict(dict(reader.stream(dtype, device)), assign=True)
    return model.eval()


def save(
    folder: Path | str,
    model: Nvila,
    tokenizer: Tokenizer,
    dtype: torch.dtype | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a network that `load` and Hugging Face's classes read; by default in its own dtype."""
    folder = Path(folder)
    dtype = dtype or model.dtype
    language = model.config.language
    with contextlib.ExitStack() as stack:
        writers = []
        for part in PARTS:
            module = model.get_submodule(part)
            (folder / part).mkdir(parents=True, exist_ok=True)
            specifications = stored_specifications(module, language, dtype)
            writer = stack.enter_context(PartWriter(folder / part, specifications, shard_bytes))
            _write_part(writer, module, language)
            writers.append(writer)
        # Nothing of an older checkpoint in this folder has been touched up to here.
        save_config(folder, model.config, str(dtype).removeprefix("torch."))
        tokenizer.save(folder / "llm")
        for writer in writers:
            writer.finish()


def _write_part(writer: PartWriter, module: nn.Module, config: LanguageConfig) -> None:
    replaced = quantized_reader(module, config).replaced
    for key, tensor in module.state_dict().items():
        if key not in replaced:
            writer.write(key, tensor)
    for name, linear in quantized_linears(module):
        for key, tensor in stored_linear(linear, config.quantization).items():
            writer.write(f"{name}.{key}", tensor)


def stored_specifications(
    module: nn.Module, config: LanguageConfig, dtype: torch.dtype
) -> dict[str, Specification]:
    """Key in the layout -> dtype and shape of a part; int4 and int8 stay, the rest gets `dtype`."""
    replaced = quantized_reader(module, config).replaced
    specifications: dict[str, Specification] = {
        key: (dtype, tuple(tensor.shape))
        for key, tensor in module.state_dict().items()
        if key not in replaced
    }
    for name, linear in quantized_linears(module):
        if isinstance(linear, W8A8Linear):
            stored = int8_specifications(linear)
        else:
            assert config.quantization is not None
            stored = packed_specifications(config.quantization, linear)
        specifications |= {f"{name}.{key}": specification for key, specification in stored.items()}
    return specifications


def quantized_linears(module: nn.Module) -> Iterator[tuple[str, W4A16Linear | W8A8Linear]]:
    """The linears of a part that are not float, by name."""
    for name, part in module.named_modules():
        if isinstance(part, (W4A16Linear, W8A8Linear)):
            yield name, part


def stored_linear(
    linear: W4A16Linear | W8A8Linear, quantization: QuantizationConfig | None
) -> dict[str, Tensor]:
    """A quantized linear's tensors, without its bias, as the layout has them."""
    if isinstance(linear, W8A8Linear):
        return int8_tensors(linear)
    assert quantization is not None
    return packed_tensors(quantization, linear)
