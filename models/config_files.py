# SPDX-License-Identifier: Apache-2.0
"""Reads a network's sizes from the JSON files of the released three-folder layout."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.config import (
    DOWNSAMPLE_RATES,
    LanguageConfig,
    NvilaConfig,
    QuantizationConfig,
    VisionConfig,
)
from nvila_ros.models.encoder_config import read_encoders
from nvila_ros.models.quantization import read_quantization
from nvila_ros.models.quantization_int8 import read_int8

FAMILIES = ("llava_llama", "vila")  # the released folders' model_type, and remote code's


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint, or a CheckpointError that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; point model_path at a folder in the released layout"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy the file again")
    return data


def _require(mapping: dict[str, Any], key: str, path: Path) -> Any:
    if mapping.get(key) is None:
        raise CheckpointError(f"{path} has no {key!r}; it is needed to build the network")
    return mapping[key]


def _read_vision(path: Path) -> VisionConfig:
    data = read_json(path)
    model_type = data.get("model_type", "siglip_vision_model")
    if model_type != "siglip_vision_model":
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; 'siglip_vision_model' is supported"
        )
    known = {item.name for item in fields(VisionConfig)} - {"quantization"}
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        _require(data, key, path)
    for key in ("image_size", "patch_size"):
        _require(data, key, path)
    stored = data.get("quantization_config")
    return VisionConfig(
        **{key: value for key, value in data.items() if key in known},
        quantization=read_int8(stored, path) if stored else None,
    )


def _read_language_quantization(path: Path, data: dict[str, Any]) -> QuantizationConfig | None:
    """From `quantization_config`, or from the `quant_config.json` that older AutoAWQ wrote."""
    beside = path.with_name("quant_config.json")
    if data.get("quantization_config"):
        return read_quantization(data["quantization_config"], path)
    return read_quantization(read_json(beside), beside) if beside.exists() else None


def read_language(path: Path) -> LanguageConfig:
    """The decoder's sizes from `llm/config.json`."""
    data = read_json(path)
    model_type = _require(data, "model_type", path)
    if model_type not in ("qwen2", "llama"):
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; 'qwen2' or 'llama' is supported"
        )
    if data.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{path}: hidden_act is {data['hidden_act']!r}; 'silu' is supported")
    if data.get("use_sliding_window"):
        raise CheckpointError(
            f"{path}: sliding window attention is on; full attention is supported"
        )
    heads = _require(data, "num_attention_heads", path)
    hidden_size = _require(data, "hidden_size", path)
    max_positions = _require(data, "max_position_embeddings", path)
    # Transformers 5 moved rope_theta into rope_parameters; released folders have it at the top.
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear"):
        raise CheckpointError(
            f"{path}: rope type is {rope_type!r}; 'default' or 'linear' is supported"
        )
    return LanguageConfig(
        vocab_size=_require(data, "vocab_size", path),
        hidden_size=hidden_size,
        intermediate_size=_require(data, "intermediate_size", path),
        num_hidden_layers=_require(data, "num_hidden_layers", path),
        num_attention_heads=heads,
        num_key_value_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or hidden_size // heads,
        max_position_embeddings=max_positions,
        model_max_length=data.get("model_max_length") or max_positions,
        rope_theta=data.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        rope_linear_factor=rope.get("factor", 1.0) if rope_type == "linear" else 1.0,
        rms_norm_eps=data.get("rms_norm_eps", 1e-6),
        qkv_bias=model_type == "qwen2" or bool(data.get("attention_bias", False)),
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        model_type=model_type,
        quantization=_read_language_quantization(path, data),
    )


def _check_features(path: Path, data: dict[str, Any], image_size: int) -> None:
    """Refuse what older VILA code could do with pixels and features, and this network does not."""
    supported = {
        "s2": (None, False),
        "mm_use_im_start_end": (None, False),
        "mm_vision_select_feature": (None, "cls_patch"),
        "vision_resolution": (None, -1, image_size),
    }
    for key, values in supported.items():
        if data.get(key) not in values:
            raise CheckpointError(
                f"{path}: {key} is {data[key]!r}; {values[1]!r} is supported; "
                "use a checkpoint that was trained with it"
            )


def _check_family(folder: Path, path: Path, data: dict[str, Any]) -> None:
    """Refuse what is no VILA, and VILA in a layout without the three folders."""
    model_type = data.get("model_type")
    if model_type in ("qwen2", "llama", "siglip_vision_model", "v2l_projector"):
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, which is one part of a checkpoint; point at "
            f"the folder above it ({folder.resolve().parent})"
        )
    if model_type not in (None, *FAMILIES):
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}; one of {', '.join(map(repr, FAMILIES))} "
            "(NVILA, NVILA-Lite, NVILA-Video, NaVILA) is expected"
        )
    if not any((folder / part).is_dir() for part in ("llm", "vision_tower", "mm_projector")):
        raise CheckpointError(
            f"{folder} has none of the folders llm, vision_tower and mm_projector; a checkpoint in "
            "one piece, such as those that end in -hf, is not read: take the one of the same name "
            "without -hf"
        )


def load_config(folder: Path | str) -> NvilaConfig:
    """Read the JSON files of a released three-folder checkpoint."""
    folder = Path(folder)
    try:
        return _load_config(folder)
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'} and those of its parts: {error}") from None


def _load_config(folder: Path) -> NvilaConfig:
    path = folder / "config.json"
    data = read_json(path)
    _check_family(folder, path, data)
    projector_path = folder / "mm_projector" / "config.json"
    projector = read_json(projector_path)
    language = read_language(folder / "llm" / "config.json")
    aspect_ratio = data.get("image_aspect_ratio") or "resize"
    is_s2 = bool(data.get("dynamic_s2")) or aspect_ratio == "dynamic_s2"
    vision = _read_vision(folder / "vision_tower" / "config.json")
    _check_features(path, data, vision.image_size)
    scales = data.get("s2_scales") or ""
    if isinstance(scales, str):
        parts = [scale.strip() for scale in scales.split(",") if scale.strip()]
        if not all(part.isdecimal() for part in parts):
            raise CheckpointError(f"{path}: s2_scales is {scales!r}; '448,896,1344' is the form")
        scales = [int(part) for part in parts]
    projector_type = _require(projector, "mm_projector_type", projector_path)
    if projector_type not in DOWNSAMPLE_RATES:
        raise CheckpointError(
            f"{projector_path}: mm_projector_type is {projector_type!r}; "
            f"one of {', '.join(DOWNSAMPLE_RATES)} is supported"
        )
    return NvilaConfig(
        vision=vision,
        language=language,
        mm_projector_type=projector_type,
        image_aspect_ratio=aspect_ratio,
        mm_vision_select_layer=data.get("mm_vision_select_layer", -2),
        num_video_frames=data.get("num_video_frames") or 8,
        video_rate_hz=data.get("fps") or 0.0,
        video_max_tiles=data.get("video_max_tiles") or 1,
        s2_scales=tuple(scales) if is_s2 else (),
        s2_output_scale=data.get("s2_resize_output_to_scale_idx", 0) if is_s2 else -1,
        min_tiles=data.get("min_tiles") or 1,
        max_tiles=data.get("max_tiles") or 12,
        chat_template="llama_3" if language.model_type == "llama" else "qwen2",
        num_time_tokens=data.get("num_time_tokens") or 0,
        time_token_format=data.get("time_token_format") or "<t{t}>",
        **read_encoders(data, path, language),
    )
