# SPDX-License-Identifier: Apache-2.0
"""CUDA C++ source -> machine code: NVRTC from torch's own wheels, or nvcc where that is missing.

Nothing here needs a GPU: code for any architecture is made on any machine.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvila_ros.errors import KernelError

SOURCES = Path(__file__).resolve().parent / "csrc"
INSTALL_HINT = (
    "install NVIDIA's compiler with `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime` (they come "
    "with torch's CUDA wheels), or set CUDA_HOME to a CUDA toolkit of 12.0 or newer"
)
OPTIONS = ("-std=c++17", "-lineinfo", "-I" + str(SOURCES))


@dataclass(frozen=True)
class Compiler:
    """A way to make code. `library` is NVRTC's handle, or None for the program `executable`."""

    version: str  # part of the cache's key
    include: Path | None  # where cuda_fp16.h lies; nvcc knows its own
    library: ctypes.CDLL | None = None
    executable: str | None = None
    architectures: frozenset[int] = frozenset()  # 80, 90, ...; empty where it does not say

    def require(self, arch: str) -> None:
        """Raise KernelError unless it makes code for `arch` ('sm_80', 'sm_90a', ...)."""
        number = int(arch.removeprefix("sm_").removesuffix("a"))
        if self.architectures and number not in self.architectures:
            raise KernelError(
                f"this GPU is {arch}, {self.version} makes code for "
                f"{', '.join(f'sm_{known}' for known in sorted(self.architectures))}; update it "
                "with `pip install -U nvidia-cuda-nvrtc nvidia-cuda-runtime`"
            )

    def compile(self, source: Path, defines: Mapping[str, object], arch: str) -> bytes:
        """One `.cu` file -> cubin for `arch` ('sm_80', 'sm_90a', ...)."""
        flags = [*OPTIONS, *(f"-D{name}={_word(value)}" for name, value in defines.items())]
        if self.include is not None:
            flags.append(f"-I{self.include}")
        if self.library is not None:
            return _compile_nvrtc(self.library, source, [*flags, f"--gpu-architecture={arch}"])
        assert self.executable is not None
        return _compile_nvcc(self.executable, source, [*flags, f"-arch={arch}"])


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


@functools.lru_cache(maxsize=1)
def find_compiler() -> Compiler:
    """NVRTC of the wheels, of CUDA_HOME, of the system; then nvcc; else KernelError."""
    include = _find_include()
    for path in _nvrtc_candidates():
        library = _open_nvrtc(path)
        if library is not None and include is not None:
            major, minor = ctypes.c_int(), ctypes.c_int()
            library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
            version = f"nvrtc {major.value}.{minor.value}"
            known = _nvrtc_architectures(library)
            return Compiler(version, include, library=library, architectures=known)
    executable = _find_nvcc()
    if executable is not None:
        answer = subprocess.run([executable, "--version"], capture_output=True, text=True)
        return Compiler(answer.stdout.strip().splitlines()[-1], None, executable=executable)
    raise KernelError(f"no CUDA compiler was found: {INSTALL_HINT}")


def _wheel_folders() -> list[Path]:
    """The folders `nvidia/cu13`, `nvidia/cuda_nvrtc`, ... that torch's wheels depend on."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else list(spec.submodule_search_locations or ())
    names = ("cu13", "cuda_nvrtc", "cuda_runtime", "cu12")
    return [Path(root) / name for root in roots for name in names if (Path(root) / name).is_dir()]


def _toolkit_folders() -> list[Path]:
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    usual = [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    usual.append("/usr/local/cuda")
    return [Path(folder) for folder in [*named, *usual] if folder and Path(folder).is_dir()]


def _nvrtc_candidates() -> list[Path | str]:
    if sys.platform == "win32":
        patterns, folders, system = ["nvrtc64_*.dll"], ["bin", "bin/x64"], []
    else:
        patterns, folders = ["libnvrtc.so.1[23]", "libnvrtc.so"], ["lib", "lib64"]
        system = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    found: list[Path | str] = []
    for root in [*_wheel_folders(), *_toolkit_folders()]:
        for folder in folders:
            for pattern in patterns:
                found += sorted((root / folder).glob(pattern))
    return found + system


def _open_nvrtc(path: Path | str) -> ctypes.CDLL | None:
    """NVRTC looks for its builtins by bare name, which the wheels' folder does not answer to."""
    try:
        if isinstance(path, Path):
            pattern = "nvrtc-builtins*.dll" if sys.platform == "win32" else "libnvrtc-builtins.so.*"
            for builtins in path.parent.glob(pattern):
                if ".alt." not in builtins.name:
                    ctypes.CDLL(str(builtins))
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _nvrtc_architectures(library: ctypes.CDLL) -> frozenset[int]:
    count = ctypes.c_int()
    if library.nvrtcGetNumSupportedArchs(ctypes.byref(count)):
        return frozenset()
    numbers = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(numbers)
    return frozenset(numbers)


def _find_include() -> Path | None:
    for root in [*_wheel_folders(), *_toolkit_folders()]:
        if (root / "include" / "cuda_fp16.h").is_file():
            return root / "include"
    return None


def _find_nvcc() -> str | None:
    for root in _toolkit_folders():
        found = shutil.which("nvcc", path=str(root / "bin"))
        if found:
            return found
    return shutil.which("nvcc")


def _compile_nvrtc(library: ctypes.CDLL, source: Path, flags: Sequence[str]) -> bytes:
    def check(status: int) -> None:
        if status:
            raise KernelError(
                f"{source.name}: {library.nvrtcGetErrorString(status).decode()}\n{_log()}"
            )

    def _log() -> str:
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        library.nvrtcGetProgramLog(program, text)
        return text.value.decode(errors="replace")

    program = ctypes.c_void_p()
    text = source.read_bytes()
    check(
        library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    )
    try:
        words = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        check(library.nvrtcCompileProgram(program, len(flags), words))
        size = ctypes.c_size_t()
        check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        cubin = ctypes.create_string_buffer(size.value)
        check(library.nvrtcGetCUBIN(program, cubin))
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _compile_nvcc(executable: str, source: Path, flags: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.cubin"
        command = [executable, "-cubin", *flags, "-o", str(target), str(source)]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise KernelError(f"{source.name}: nvcc refused it\n{answer.stderr}")
        return target.read_bytes()
