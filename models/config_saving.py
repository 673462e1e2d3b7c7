# SPDX-License-Identifier: Apache-2.0
"""Writes a network's sizes as the JSON files of the released three-folder layout."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.encoder_config import write_encoders
from nvila_ros.models.quantization import write_quantization
from nvila_ros.models.quantization_int8 import write_int8


def save_config(folder: Path | str, config: NvilaConfig, dtype: str) -> None:
    """Write the JSON files; Hugging Face's classes read those of `llm/` and `vision_tower/`."""
    folder = Path(folder)
    projector = {
        "architectures": ["MultimodalProjector"],
        "model_type": "v2l_projector",
        "mm_projector_type": config.mm_projector_type,
        "torch_dtype": dtype,
    }
    language, vision = _language(config.language, dtype), _vision(config.vision, dtype)
    # VILA's own classes look for the parts only where the top level describes them too.
    nested = {"llm_cfg": language, "vision_tower_cfg": vision, "mm_projector_cfg": projector}
    parts = {
        "config.json": {**_top_level(config, dtype), **nested},
        "llm/config.json": language,
        "vision_tower/config.json": vision,
        "vision_tower/preprocessor_config.json": _preprocessor(config),
        "mm_projector/config.json": projector,
    }
    for name, data in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _top_level(config: NvilaConfig, dtype: str) -> dict[str, Any]:
    return {
        **write_encoders(config),
        "dynamic_s2": bool(config.s2_scales),
        "fps": config.video_rate_hz,
        "hidden_size": config.language.hidden_size,
        "image_aspect_ratio": config.image_aspect_ratio,
        "max_tiles": config.max_tiles,
        "min_tiles": config.min_tiles,
        "mm_hidden_size": config.mm_hidden_size,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": config.mm_vision_select_layer,
        "model_dtype": f"torch.{dtype}",
        "num_time_tokens": config.num_time_tokens,
        "num_video_frames": config.num_video_frames,
        "resume_path": ".",  # without one VILA's classes would start from random weights
        "s2": False,
        "s2_max_split_size": config.vision.image_size,
        "s2_resize_output_to_scale_idx": config.s2_output_scale,
        "s2_scales": ",".join(str(scale) for scale in config.s2_scales),
        "time_token_format": config.time_token_format,
        "video_max_tiles": config.video_max_tiles,
    }


def _language(config: LanguageConfig, dtype: str) -> dict[str, Any]:
    data = asdict(config)
    qkv_bias = data.pop("qkv_bias")
    factor = data.pop("rope_linear_factor")
    del data["quantization"]
    quantized = (
        {"quantization_config": write_quantization(config.quantization)}
        if config.quantization
        else {}
    )
    is_qwen2 = config.model_type == "qwen2"
    return {
        "architectures": ["Qwen2ForCausalLM" if is_qwen2 else "LlamaForCausalLM"],
        **data,
        **({} if is_qwen2 else {"attention_bias": qkv_bias}),
        "hidden_act": "silu",
        "rope_scaling": None if factor == 1.0 else {"type": "linear", "factor": factor},
        "torch_dtype": dtype,
        **quantized,
    }


def _vision(config: VisionConfig, dtype: str) -> dict[str, Any]:
    data = asdict(config)
    del data["quantization"]
    if config.quantization:
        data["quantization_config"] = write_int8(config.quantization)
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "torch_dtype": dtype,
        **data,
    }


def _preprocessor(config: NvilaConfig) -> dict[str, Any]:
    side = config.vision.image_size
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
