# SPDX-License-Identifier: Apache-2.0
"""Compiling once, keeping it safely, launching it on torch's stream."""

import ctypes
from pathlib import Path

import pytest
import torch

from nvila_ros.errors import KernelError
from nvila_ros.kernels import build, compiler
from nvila_ros.kernels.w4a16_gemm_plan import hopper_plan, mma_plan

SAXPY = """
extern "C" __global__ void saxpy(const float *x, float *y, float factor, int count) {
  extern __shared__ float room[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  room[threadIdx.x] = i < count ? x[i] : 0.f;
  __syncthreads();
  if (i < count) y[i] += SCALE * factor * room[threadIdx.x];
}
"""


class FakeCompiler:
    version = "fake 1"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def compile(self, source: Path, defines: object, arch: str) -> bytes:
        self.calls.append(arch)
        return f"{source.name} {defines} {arch}".encode()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    """A compiler that counts, sources in a folder of their own and an empty cache."""
    compiling = FakeCompiler()
    (tmp_path / "a.cu").write_text('#include "shared.cuh"\n#include <cuda_fp16.h>\n')
    (tmp_path / "shared.cuh").write_text("// first\n")
    monkeypatch.setenv("NVILA_ROS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "find_compiler", lambda: compiling)
    return compiling


def test_compiled_once_per_source_defines_and_architecture(fake: FakeCompiler) -> None:
    for _ in range(2):
        build.cubin("a.cu", {"ROWS": 4}, "sm_80")
        build.cubin("a.cu", {"ROWS": 8}, "sm_80")
        build.cubin("a.cu", {"ROWS": 4}, "sm_90a")
    assert fake.calls == ["sm_80", "sm_80", "sm_90a"]


def test_a_changed_header_compiles_again(fake: FakeCompiler) -> None:
    build.cubin("a.cu", {}, "sm_80")
    (build.SOURCES / "shared.cuh").write_text("// second\n")
    build.cubin("a.cu", {}, "sm_80")
    assert len(fake.calls) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_compiles_again(fake: FakeCompiler, damage: bytes) -> None:
    code = build.cubin("a.cu", {}, "sm_80")
    (kept,) = build.cache_folder().iterdir()
    kept.write_bytes(damage)
    assert build.cubin("a.cu", {}, "sm_80") == code
    assert len(fake.calls) == 2
    assert build.cubin("a.cu", {}, "sm_80") == code
    assert len(fake.calls) == 2


def test_a_cache_that_cannot_be_written_only_warns(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NVILA_ROS_CACHE", str(build.SOURCES / "a.cu"))  # a file, no folder
    assert build.cubin("a.cu", {}, "sm_80")
    assert "not kept" in caplog.text


def test_an_unknown_source_says_what_there_is(fake: FakeCompiler) -> None:
    with pytest.raises(KernelError, match=r"a\.cu"):
        build.cubin("b.cu", {}, "sm_80")


def test_hopper_gets_its_own_instructions_and_turing_is_refused() -> None:
    assert build.architecture((9, 0)) == "sm_90a"
    assert build.architecture((8, 9)) == "sm_89"
    with pytest.raises(KernelError, match="sm_80 or newer"):
        build.architecture((7, 5))


def test_every_product_of_a_prompt_can_be_compiled_ahead() -> None:
    general = list(build._ahead_of_time("sm_89"))
    hopper = list(build._ahead_of_time(build.HOPPER))
    assert not any(source == "w4a16_hopper.cu" for source, _ in general)
    for rows in range(9, 2400):
        for is_gate_up in (False, True):
            plan = hopper_plan(rows, 37_888, 28, is_gate_up)
            assert ("w4a16_hopper.cu", plan.defines()) in hopper
            defines = mma_plan(rows, 37_888, 28, 76, is_gate_up).defines(is_half_sum=True)
            assert ("w4a16_mma.cu", defines) in general


def test_without_a_gpu_nothing_is_fast() -> None:
    assert not build.is_fast(torch.zeros(1))


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_nvrtc_candidates", list)
    monkeypatch.setattr(compiler, "_find_nvcc", lambda: None)
    with pytest.raises(KernelError, match="pip install nvidia-cuda-nvrtc"):
        compiler.find_compiler.__wrapped__()


@pytest.fixture
def saxpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "saxpy.cu").write_text(SAXPY)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("NVILA_ROS_CACHE", str(tmp_path / "cache"))
    return "saxpy.cu"


def test_a_real_compiler_makes_code_and_explains_refusals(saxpy: str) -> None:
    try:
        compiler.find_compiler()
    except KernelError:
        pytest.skip("no CUDA compiler on this machine")
    assert build.cubin(saxpy, {"SCALE": 2}, "sm_80")[:4] == b"\x7fELF"
    with pytest.raises(KernelError, match="undefined"):
        build.cubin(saxpy, {}, "sm_80")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_launches_on_the_current_stream_and_under_capture(saxpy: str) -> None:
    kernel = build.load(saxpy, {"SCALE": 2}).kernel("saxpy")
    x = torch.randn(1000, device="cuda")
    y = torch.ones(1000, device="cuda")
    arguments = [x, y, 0.5, ctypes.c_int32(1000)]
    kernel.launch(grid=(8,), block=(128,), args=arguments, shared_bytes=64 * 1024)
    torch.testing.assert_close(y, 1 + x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.launch(grid=(8,), block=(128,), args=arguments, shared_bytes=512, programmatic=True)
    graph.replay()
    graph.replay()
    torch.testing.assert_close(y, 1 + 3 * x)
    with pytest.raises(KernelError, match="saxpi"):
        build.load(saxpy, {"SCALE": 2}).kernel("saxpi")
