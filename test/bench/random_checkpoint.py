# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of true sizes with random weights, for measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nvila_ros.models import weights
from nvila_ros.models.config import NvilaConfig, QuantizationConfig
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.part_files import PARTS
from nvila_ros.models.released import NVILA_LITE_8B
from nvila_ros.models.writing import PartWriter
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

POOL_NUMBERS = 1 << 24


def lite_8b(*, num_layers: int, is_int4: bool) -> NvilaConfig:
    """NVILA-Lite-8B's sizes."""
    quantization = QuantizationConfig(layout="awq_gemm") if is_int4 else None
    language = replace(
        NVILA_LITE_8B.language, num_hidden_layers=num_layers, quantization=quantization
    )
    return replace(NVILA_LITE_8B, language=language)


def write_checkpoint(folder: Path, config: NvilaConfig) -> None:
    """Random weights in bf16 (scales in fp16), tensor by tensor, in shards as released."""
    save_config(folder, config, "bfloat16")
    build_nano_tokenizer(["go"]).save(folder / "llm")
    with torch.device("meta"):
        model = Nvila(config)
    generator = torch.Generator().manual_seed(0)
    floats = torch.empty(POOL_NUMBERS).normal_(0, 0.02, generator=generator)
    words = torch.randint(-(2**31), 2**31, (POOL_NUMBERS,), generator=generator).int()
    pools = {torch.int32: words, torch.bfloat16: floats.bfloat16(), torch.float16: floats.half()}
    for part in PARTS:
        module = model.get_submodule(part)
        tensors = weights.stored_specifications(module, config.language, torch.bfloat16)
        with PartWriter(folder / part, tensors) as writer:
            for key, (dtype, shape) in tensors.items():
                count = torch.Size(shape).numel()
                pool = pools[dtype]
                writer.write(key, pool.repeat(-(-count // POOL_NUMBERS))[:count].view(shape))
            writer.finish()


def weight_files(folder: Path) -> list[Path]:
    """In the order in which they are loaded."""
    return [path for part in PARTS for path in sorted((folder / part).glob("*.safetensors"))]
