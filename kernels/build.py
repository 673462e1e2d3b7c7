# SPDX-License-Identifier: Apache-2.0
"""Kernels by name: compiled at first use, kept on disk and in memory, ready to launch.

    module = load("decode.cu", defines={"HIDDEN": 3584})
    module.kernel("rms_norm").launch(grid=(8,), block=(256,), args=[x, weight, y, 1e-6])

Ahead of time, on a machine with or without a GPU:
    python -m nvila_ros.kernels.build --arch sm_80 sm_89 sm_90a sm_120
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from nvila_ros.errors import KernelError
from nvila_ros.kernels import driver
from nvila_ros.kernels.compiler import OPTIONS, SOURCES, find_compiler

log = logging.getLogger(__name__)

OLDEST_CAPABILITY = (8, 0)  # Ampere: cp.async, mma.sync on fp16 and int8
# Modules whose functions `ahead_of_time()` and, for sm_90a, `ahead_of_time_hopper()` yield
# (source, defines) of what they load.
FAMILIES = ("decode", "w4a16_gemm", "prefill", "w8a8", "vision_attention")
HOPPER = "sm_90a"
DIGEST_BYTES = 32  # a file of the cache begins with the SHA-256 of what follows

_lock = threading.Lock()
_modules: dict[tuple[str, tuple[tuple[str, str], ...], int], driver.Module] = {}


def load(
    source: str, defines: Mapping[str, object] | None = None, device: int | None = None
) -> driver.Module:
    """The compiled `csrc/<source>` in the context of `device` (the current one by default).

    Raises KernelError without a compiler, without a usable GPU, or when the source is refused.
    """
    index = torch.cuda.current_device() if device is None else device
    options = {name: str(value) for name, value in (defines or {}).items()}
    key = (source, tuple(sorted(options.items())), index)
    module = _modules.get(key)
    if module is None:
        with _lock:
            module = _modules.get(key)
            if module is None:
                arch = architecture(torch.cuda.get_device_capability(index))
                module = driver.Module(cubin(source, defines or {}, arch), index)
                _modules[key] = module
    return module


def require(index: int) -> None:
    """Raise KernelError that says what keeps this device from the fast kernels, if anything does.

    Too old a GPU, no driver, no compiler, or one that does not know the GPU.
    """
    arch = architecture(torch.cuda.get_device_capability(index))
    driver.cuda()
    find_compiler().require(arch)


def architecture(capability: tuple[int, int]) -> str:
    """(major, minor) -> the compiler's name; Hopper's own instructions need the 'a'."""
    if capability < OLDEST_CAPABILITY:
        raise KernelError(
            f"this GPU is sm_{capability[0]}{capability[1]}; the fast kernels need sm_80 or newer"
        )
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


@functools.cache
def is_available(index: int = 0) -> bool:
    """Whether kernels can be had for this device; where not, says once why."""
    if not torch.cuda.is_available():
        return False
    try:
        require(index)
    except KernelError as error:
        log.warning("fast kernels are off, the slow path answers instead: %s", error)
        return False
    return True


def is_fast(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor has a kernel: on a GPU that `is_available` accepts."""
    return tensor.is_cuda and is_available(tensor.device.index or 0)


def cache_folder() -> Path:
    """`$NVILA_ROS_CACHE/kernels`, by default under `~/.cache/nvila_ros`."""
    root = os.environ.get("NVILA_ROS_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "nvila_ros") / "kernels"


def cubin(source: str, defines: Mapping[str, object], arch: str) -> bytes:
    """Machine code of `csrc/<source>`: from the cache, else compiled and kept there."""
    path = SOURCES / source
    if not path.is_file():
        raise KernelError(f"there is no kernel source {source}; csrc/ holds {_sources()}")
    compiler = find_compiler()
    digest = hashlib.sha256()
    for part in (compiler.version, arch, *OPTIONS[:-1], *sorted(map(repr, defines.items()))):
        digest.update(part.encode() + b"\0")
    for included in _with_includes(path):
        digest.update(included.read_bytes() + b"\0")
    kept = cache_folder() / f"{path.stem}_{arch}_{digest.hexdigest()[:24]}.cubin"
    code = _read(kept)
    if code is None:
        log.info("compiling %s for %s", source, arch)
        code = compiler.compile(path, defines, arch)
        _write(kept, code)
    return code


def _sources() -> list[str]:
    return sorted(path.name for path in SOURCES.glob("*.cu"))


def _with_includes(path: Path) -> list[Path]:
    """The source and every file of csrc/ that it includes, each once, in reading order."""
    found, waiting = [], [path]
    while waiting:
        current = waiting.pop(0)
        if current in found:
            continue
        found.append(current)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', current.read_text("utf-8"), re.M):
            if (SOURCES / name).is_file():
                waiting.append(SOURCES / name)
    return found


def _read(path: Path) -> bytes | None:
    """A kept file, or None when it is missing, cut short or changed."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, code = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Whole or not at all: other processes may read and write the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(name, path)  # noqa: PTH105
    except OSError as error:
        log.warning("compiled kernels are not kept (%s): they are compiled at each start", error)


def _ahead_of_time(arch: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    wanted = ["ahead_of_time", *(["ahead_of_time_hopper"] if arch == HOPPER else [])]
    for family in FAMILIES:
        name = f"nvila_ros.kernels.{family}"
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        for function in wanted:
            yield from getattr(module, function, tuple)()


def main() -> None:
    """Fill the cache for the architectures that are named."""
    parser = argparse.ArgumentParser(description="compile every CUDA kernel into the cache")
    parser.add_argument("--arch", nargs="+", required=True, help="sm_80 sm_86 sm_89 sm_90a sm_120")
    for arch in parser.parse_args().arch:
        for source, defines in _ahead_of_time(arch):
            size = len(cubin(source, defines, arch))
            print(f"{arch:8} {source} {dict(defines)}: {size / 1024:.0f} KiB")
    print(cache_folder())


if __name__ == "__main__":
    main()
