# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of true sizes with random weights, for measurements."""

from __future__ import annotations

from pathlib import Path

import torch

from nvila_ros.models import weights
from nvila_ros.models.config import LanguageConfig, NvilaConfig, QuantizationConfig, VisionConfig
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.part_files import PARTS
from nvila_ros.models.writing import PartWriter
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

POOL_NUMBERS = 1 << 24


def lite_8b(*, num_layers: int, is_int4: bool) -> NvilaConfig:
    """NVILA-Lite-8B's sizes."""
    return NvilaConfig(
        vision=VisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=448,
            patch_size=14,
        ),
        language=LanguageConfig(
            vocab_size=151_648,
            hidden_size=3584,
            intermediate_size=18_944,
            num_hidden_layers=num_layers,
            num_attention_heads=28,
            num_key_value_heads=4,
            head_dim=128,
            max_position_embeddings=32_768,
            model_max_length=4096,
            rope_theta=1e6,
            quantization=QuantizationConfig(layout="awq_gemm") if is_int4 else None,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
        image_aspect_ratio="dynamic",
    )


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
