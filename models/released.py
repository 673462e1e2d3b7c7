# SPDX-License-Identifier: Apache-2.0
"""Sizes of the released networks, as their config files state them (reference/nvila.md section 4).

A checkpoint's own config always counts; these are for what has no checkpoint at hand: benchmarks
on random weights, memory tables, tests.
"""

from __future__ import annotations

from dataclasses import replace

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig

SIGLIP_448 = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=448,
    patch_size=14,
)
QWEN2_7B = LanguageConfig(
    vocab_size=151_648,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=32_768,
    model_max_length=8192,
    rope_theta=1_000_000.0,
)
QWEN2_1_5B = replace(
    QWEN2_7B,
    hidden_size=1536,
    intermediate_size=8960,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
QWEN2_14B = replace(
    QWEN2_7B,
    hidden_size=5120,
    intermediate_size=13_824,
    num_hidden_layers=48,
    num_attention_heads=40,
    num_key_value_heads=8,
)
LLAMA_3_8B = LanguageConfig(
    vocab_size=128_259,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
    model_max_length=4096,
    rope_theta=500_000.0,
    qkv_bias=False,
    model_type="llama",
)
NVILA_8B = NvilaConfig(
    vision=SIGLIP_448,
    language=QWEN2_7B,
    mm_projector_type="mlp_downsample",
    image_aspect_ratio="dynamic_s2",
    s2_scales=(448, 896, 1344),
)
NVILA_LITE_8B = NvilaConfig(
    vision=SIGLIP_448,
    language=replace(QWEN2_7B, model_max_length=4096),
    mm_projector_type="mlp_downsample_3x3_fix",
    image_aspect_ratio="dynamic",
)
