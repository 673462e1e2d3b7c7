# SPDX-License-Identifier: Apache-2.0
"""The machine code of the int4 product: fp16 sums on GeForce, warpgroup products on Hopper."""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from nvila_ros.errors import KernelError
from nvila_ros.kernels import build, compiler
from nvila_ros.kernels.w4a16_gemm_plan import hopper_plan, mma_plan


def find_disassembler():
    """cuobjdump of the path, or the one that Triton's wheel brings along."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(inside) if inside.is_file() else None
    return found


@pytest.fixture(scope="module", autouse=True)
def tools():
    try:
        compiler.find_compiler()
    except KernelError:
        pytest.skip("needs a CUDA compiler")
    if find_disassembler() is None:
        pytest.skip("needs cuobjdump (CUDA toolkit or Triton)")


def tensor_instructions(tmp_path, source, defines, arch):
    """How often each instruction of the tensor cores stands in the code."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(build.cubin(source, defines, arch))
    command = [find_disassembler(), "-sass", str(file)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"\b(?:HMMA|HGMMA)\.[.\w]+", code)), code


EVERY_TILE = [
    pytest.param(arch, num_tokens, marks=pytest.mark.slow)
    for arch in ("sm_80", "sm_86", "sm_120")
    for num_tokens in (32, 64, 1088)
]


@pytest.mark.parametrize("arch, num_tokens", [("sm_89", 1088), *EVERY_TILE])
def test_products_are_summed_in_fp16(tmp_path, arch, num_tokens):
    defines = mma_plan(num_tokens, 3584, 28, 76).defines(is_half_sum=True)
    counted, code = tensor_instructions(tmp_path, "w4a16_mma.cu", defines, arch)
    assert set(counted) == {"HMMA.16816.F16"}  # none of .F32
    assert "LDGSTS" in code and "LDSM" in code  # asynchronous copies, matrix loads


def test_fp32_sums_can_be_chosen(tmp_path):
    defines = mma_plan(1088, 3584, 28, 76).defines(is_half_sum=False)
    counted, _ = tensor_instructions(tmp_path, "w4a16_mma.cu", defines, "sm_89")
    assert set(counted) == {"HMMA.16816.F32"}


def test_hopper_multiplies_with_whole_warpgroups(tmp_path):
    plan = hopper_plan(1088, 3584, 28, is_gate_up=True)
    counted, code = tensor_instructions(tmp_path, "w4a16_hopper.cu", plan.defines(), "sm_90a")
    assert set(counted) == {f"HGMMA.64x{plan.tile_tokens}x16.F32"}
    assert "UTMALDG" in code  # the copy engine
