# SPDX-License-Identifier: Apache-2.0
"""Any checkpoint that can be read, written again in the released layout with safetensors."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.headers import DTYPES, SCALING_SUFFIXES
from nvila_ros.models.part_files import PARTS, checkpoint_folder
from nvila_ros.models.pickles import has_only_pickles, open_pickles
from nvila_ros.models.quantization import PackedReader
from nvila_ros.models.reading import PartReader, Source
from nvila_ros.models.weights import open_checkpoint, stored_linear, stored_specifications
from nvila_ros.models.writing import SHARD_BYTES, PartWriter, Specification, num_bytes_of

FLOATS = ("F16", "BF16", "F32")
# Beside the weights, for people and for Hugging Face's classes.
KEPT_FILES = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "llm/generation_config.json")


def convert(
    source: Path | str,
    target: Path | str,
    dtype: torch.dtype | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    changed: Callable[[str, Tensor], Tensor] | None = None,
    check: Callable[[], None] | None = None,
) -> Path:
    """Write the checkpoint `source` as the new folder `target`; by default in its precision.

    One tensor at a time is in memory. The target appears when it is complete; whatever stops the
    work before leaves nothing. `changed` may give another tensor of the same shape for a name
    ('llm.model.norm.weight') and its tensor; `check` is called when all are written and may raise.
    """
    source, target = checkpoint_folder(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; give a folder that is new or empty")
    pickles: dict[str, list[Source]] = {
        part: [*open_pickles(source / part)] for part in PARTS if has_only_pickles(source / part)
    }
    model, tokenizer, readers = open_checkpoint(source, pickles)
    dtype = dtype or _common_dtype(readers)
    language = model.config.language
    plans = {
        part: _specifications(model.get_submodule(part), reader, language, dtype)
        for part, reader in readers.items()
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target, plans)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as workplace:
            finished = Path(workplace) / "target"
            save_config(finished, model.config, str(dtype).removeprefix("torch."))
            tokenizer.save(finished / "llm")
            for part, reader in readers.items():
                with PartWriter(finished / part, plans[part], shard_bytes) as writer:
                    for key, tensor in _repacked(model.get_submodule(part), reader, language):
                        written = tensor if changed is None else changed(f"{part}.{key}", tensor)
                        writer.write(key, written)
                    writer.finish()
            if check is not None:
                check()
            for name in KEPT_FILES:
                if (source / name).is_file() and not (finished / name).exists():
                    shutil.copyfile(source / name, finished / name)
            if target.exists():
                target.rmdir()
            finished.rename(target)
    except OSError as error:
        advice = "make room" if error.errno == errno.ENOSPC else "choose another place"
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror}); {advice}; nothing was left there"
        ) from None
    return target


def _common_dtype(readers: dict[str, PartReader]) -> torch.dtype:
    """The one float precision of all parts, float32 where they differ or have another."""
    found = {
        entry.stored.dtype
        for reader in readers.values()
        for entry in reader.entries
        if entry.stored.dtype.startswith(("F", "BF")) and not entry.name.endswith(SCALING_SUFFIXES)
    }
    single = found.pop() if len(found) == 1 else "F32"
    return DTYPES[single] if single in FLOATS else torch.float32


def _specifications(
    module: nn.Module, reader: PartReader, config: LanguageConfig, dtype: torch.dtype
) -> dict[str, Specification]:
    """What will be written; scales of int4 linears keep their precision."""
    specifications = stored_specifications(module, config, dtype)
    if isinstance(reader.packed, PackedReader):
        for entry in reader.entries:
            if entry.key in reader.packed.shapes and entry.stored.dtype in FLOATS:
                shape = specifications[entry.key][1]
                specifications[entry.key] = DTYPES[entry.stored.dtype], shape
    return specifications


def _repacked(
    module: nn.Module, reader: PartReader, config: LanguageConfig
) -> Iterator[tuple[str, Tensor]]:
    """A part's tensors as they are stored, in the order of the source; one linear at a time."""
    members = Counter(key.rpartition(".")[0] for key in reader.packed.replaced)
    state: dict[str, Tensor] = {}
    for key, tensor in reader.stream(None, torch.device("cpu")):
        name, _, suffix = key.rpartition(".")
        if key not in reader.packed.replaced:
            yield key, tensor
            continue
        state[suffix] = tensor
        if len(state) < members[name]:
            continue
        linear = module.get_submodule(name)
        assert isinstance(linear, (W4A16Linear, W8A8Linear))
        linear.load_state_dict(state, assign=True, strict=False)  # a bias comes on its own
        for stored, value in stored_linear(linear, config.quantization).items():
            yield f"{name}.{stored}", value
        linear.to("meta")
        state = {}


def _check_room(target: Path, plans: dict[str, dict[str, Specification]]) -> None:
    """Refuse at once what the disk cannot hold."""
    needed = sum(num_bytes_of(each) for plan in plans.values() for each in plan.values())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise CheckpointError(
            f"{target} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk; "
            "make room or choose another disk; nothing was written"
        )
