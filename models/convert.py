# SPDX-License-Identifier: Apache-2.0
"""Any checkpoint that can be read, written again in the released layout with safetensors."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models.config_files import save_config
from nvila_ros.models.headers import DTYPES, read_headers
from nvila_ros.models.part_files import PARTS, checkpoint_folder
from nvila_ros.models.pickles import has_only_pickles, open_pickles
from nvila_ros.models.quantization import packed_tensors
from nvila_ros.models.reading import PartReader, Source
from nvila_ros.models.weights import open_checkpoint, stored_specifications
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
) -> Path:
    """Write the checkpoint `source` as the new folder `target`; by default in its precision.

    One tensor at a time is in memory. The target appears when it is complete; whatever stops the
    work before leaves nothing.
    """
    source, target = checkpoint_folder(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; give a folder that is new or empty")
    pickles: dict[str, list[Source]] = {
        part: [*open_pickles(source / part)] for part in PARTS if has_only_pickles(source / part)
    }
    model, tokenizer, readers = open_checkpoint(source, pickles)
    dtype = dtype or _common_dtype(readers)
    plans = {
        part: _specifications(model.get_submodule(part), reader, dtype)
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
                    for key, tensor in _repacked(model.get_submodule(part), reader):
                        writer.write(key, tensor)
                    writer.finish()
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


def stored_dtype(folder: Path) -> torch.dtype:
    """The one float precision of all three parts, float32 where they differ or have another."""
    return _one_dtype(
        tensor.dtype
        for part in PARTS
        for header in read_headers(folder / part).values()
        for tensor in header.values()
    )


def _common_dtype(readers: dict[str, PartReader]) -> torch.dtype:
    return _one_dtype(entry.stored.dtype for reader in readers.values() for entry in reader.entries)


def _one_dtype(names: Iterable[str]) -> torch.dtype:
    found = {name for name in names if name.startswith(("F", "BF"))}
    single = found.pop() if len(found) == 1 else "F32"
    return DTYPES[single] if single in FLOATS else torch.float32


def _specifications(
    module: nn.Module, reader: PartReader, dtype: torch.dtype
) -> dict[str, Specification]:
    """What will be written; scales of int4 linears keep their precision."""
    specifications = stored_specifications(module, reader.quantization, dtype)
    for entry in reader.entries:
        if entry.key in reader.packed.shapes and entry.stored.dtype in FLOATS:
            specifications[entry.key] = DTYPES[entry.stored.dtype], specifications[entry.key][1]
    return specifications


def _repacked(module: nn.Module, reader: PartReader) -> Iterator[tuple[str, Tensor]]:
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
        assert reader.quantization is not None
        linear = module.get_submodule(name)
        assert isinstance(linear, W4A16Linear)
        linear.load_state_dict(state, assign=True, strict=False)  # a bias comes on its own
        for stored, value in packed_tensors(reader.quantization, linear).items():
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
