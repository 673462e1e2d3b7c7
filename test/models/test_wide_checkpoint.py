# SPDX-License-Identifier: Apache-2.0
"""A folder of NVILA-Lite-8B's widths with one or two layers: written in shards, loaded, and how
much memory the host needs beside what it loads, as the kernel counts it in an own process."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from nvila_ros.models import weights
from nvila_ros.models.config import QuantizationConfig
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.part_files import PARTS
from nvila_ros.models.released import NVILA_LITE_8B
from nvila_ros.models.writing import PartWriter

SHARD_BYTES = {"bf16": 300_000_000, "awq_gemm": 200_000_000}
POOL = 1 << 22

# Runs `work` and prints by how much the kernel's high-water mark of this process rose.
CHILD = """
import sys, torch
from pathlib import Path
from nvila_ros.models import weights
from nvila_ros.models.convert import convert

def resident(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if name in l)
    return 1024 * int(line.split()[1])

def stream(folder):
    for reader in weights.open_checkpoint(folder)[2].values():
        for item in reader.stream(torch.float16, torch.device("cpu")):
            del item

weights.open_checkpoint(sys.argv[2])
torch.ones(64, 64).half().float().int().bitwise_and_(1)
before = resident("VmRSS")
stream(sys.argv[2]) if sys.argv[1] == "stream" else convert(*sys.argv[2:], torch.float16)
print(resident("VmHWM") - before)
"""


def wide_config(vocab_size, num_layers, quantization):
    return replace(
        NVILA_LITE_8B,
        vision=replace(NVILA_LITE_8B.vision, num_hidden_layers=2),
        language=replace(
            NVILA_LITE_8B.language,
            vocab_size=vocab_size,
            num_hidden_layers=num_layers,
            quantization=quantization,
        ),
    )


@pytest.fixture(scope="module", params=["bf16", "awq_gemm"])
def folder(request, tokenizer, tmp_path_factory):
    """Random numbers in bf16, or int4 codes with scales in float16."""
    folder = tmp_path_factory.mktemp(f"wide_{request.param}")
    quantization = None if request.param == "bf16" else QuantizationConfig(layout="awq_gemm")
    config = wide_config(tokenizer.vocab_size, 1 if quantization is None else 2, quantization)
    save_config(folder, config, "bfloat16")
    tokenizer.save(folder / "llm")
    floats = torch.randn(POOL).mul_(0.02)
    words = torch.randint(-(2**31), 2**31, (POOL,)).int()
    with torch.device("meta"):
        model = Nvila(config)
    for part in PARTS:
        module = model.get_submodule(part)
        tensors = weights.stored_specifications(module, config.language, torch.bfloat16)
        with PartWriter(folder / part, tensors, SHARD_BYTES[request.param]) as writer:
            for key, (dtype, shape) in tensors.items():
                count = torch.Size(shape).numel()
                pool = words if dtype == torch.int32 else floats
                writer.write(key, pool.repeat(-(-count // POOL))[:count].view(shape))
            writer.finish()
    return folder


def stored(folder, key):
    index = json.loads((folder / "llm" / "model.safetensors.index.json").read_text())
    with safe_open(folder / "llm" / index["weight_map"][key], framework="pt") as file:
        return file.get_tensor(key)


def test_it_loads_in_its_own_precision_and_in_another(folder, one_thread):
    key = "model.embed_tokens.weight"
    own, _ = weights.load(folder, dtype=torch.bfloat16)
    assert torch.equal(own.llm.get_parameter(key), stored(folder, key))
    half, _ = weights.load(folder, dtype=torch.float16)
    assert torch.equal(half.llm.get_parameter(key), stored(folder, key).half())
    name = "model.layers.0.mlp.down_proj"
    linear = half.llm.get_submodule(name)
    if own.config.language.quantization is None:
        assert torch.equal(linear.weight, stored(folder, f"{name}.weight").half())
        assert torch.equal(own.llm.get_submodule(name).weight, stored(folder, f"{name}.weight"))
    else:
        assert torch.equal(linear.scales, stored(folder, f"{name}.scales").t())
        codes = stored(folder, f"{name}.qweight")  # (K, N / 8)
        assert torch.equal(linear.qweight[0, 0] & 15, codes[0, 0] & 15)
        assert torch.equal((linear.qweight[1, 0] >> 4) & 15, (codes[1, 0] >> 16) & 15)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("work", ["stream", "convert"])
def test_less_memory_than_a_shard_is_needed(folder, tmp_path, work):
    """`stream` takes every tensor as a float16 network would and drops it, as one on a GPU does."""
    arguments = [work, str(folder), *([str(tmp_path / "target")] if work == "convert" else [])]
    command = [sys.executable, "-c", CHILD, *arguments]
    extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    largest = max(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert extra <= 1.2 * largest, f"{extra / 1e6:.0f} MB beside files of {largest / 1e6:.0f} MB"


@pytest.mark.gpu
def test_a_gpu_holds_what_a_cpu_does(folder):
    on_gpu, _ = weights.load(folder, "cuda")
    on_cpu, _ = weights.load(folder, "cpu", torch.float16)
    expected = on_cpu.state_dict()
    for key, tensor in on_gpu.state_dict().items():
        assert tensor.device.type == "cuda" and torch.equal(tensor.cpu(), expected[key])
