# SPDX-License-Identifier: Apache-2.0
"""What `config.json` says about how pictures and videos stand among the text's embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvila_ros.errors import CheckpointError
from nvila_ros.models.config import LanguageConfig, NvilaConfig

# The class that a checkpoint was saved for: the package `llava`, or code that travels with weights.
PACKAGE_TYPE = "llava_llama"
TRAVELLING_TYPE = "vila"
_ARCHITECTURES = {PACKAGE_TYPE: "LlavaLlamaModel", TRAVELLING_TYPE: "VILAForCausalLM"}
_CLASSES = {
    "image_encoder": ("BasicImageEncoder",),
    "video_encoder": ("BasicVideoEncoder", "TSPVideoEncoder"),
}


def read_encoders(data: dict[str, Any], path: Path, language: LanguageConfig) -> dict[str, Any]:
    """The fields of NvilaConfig that the top-level config's encoders decide."""
    image = _encoder(data, "image_encoder", path)
    video = _encoder(data, "video_encoder", path)
    # NVILA ends each frame with a newline; VILA-1.5 (Llama-3) has no encoders and no newline.
    is_vila_1_5 = not image and language.model_type == "llama"
    end_text = "" if is_vila_1_5 else image.get("end_tokens", "\n") or ""
    video_end_text = video.get("end_tokens", "\n") or ""
    if video and video_end_text != end_text:
        raise CheckpointError(
            f"{path}: video_encoder ends frames with {video_end_text!r}, image_encoder with "
            f"{end_text!r}; one text for both is supported"
        )
    return {
        "frame_end_text": end_text,
        "video_pool_sizes": _pool_sizes(video, path),
        "skips_end_after_media": data.get("model_type") == TRAVELLING_TYPE,
    }


def write_encoders(config: NvilaConfig) -> dict[str, Any]:
    """The reverse of `read_encoders`: fields of the top-level config."""
    prefix = "llava.model.encoders."
    end = {} if config.frame_end_text == "\n" else {"end_tokens": config.frame_end_text or None}
    is_pooled = bool(config.video_pool_sizes)
    pooling = {"pool_sizes": [list(size) for size in config.video_pool_sizes]} if is_pooled else {}
    video_class = "TSPVideoEncoder" if is_pooled else "BasicVideoEncoder"
    model_type = TRAVELLING_TYPE if config.skips_end_after_media else PACKAGE_TYPE
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "image_encoder": {"_target_": f"{prefix}BasicImageEncoder", **end},
        "video_encoder": {"_target_": prefix + video_class, **end, **pooling},
    }


def _encoder(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An encoder's description, a dict or a JSON string of one; empty where there is none."""
    spec = data.get(key) or {}
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path}: {key} is not valid JSON ({error})") from None
    if not isinstance(spec, dict):
        raise CheckpointError(f"{path}: {key} is {spec!r}; a description of an encoder is expected")
    name = str(spec.get("_target_", _CLASSES[key][0])).rsplit(".", 1)[-1]
    if name not in _CLASSES[key]:
        raise CheckpointError(
            f"{path}: {key} is a {name}; {' or '.join(_CLASSES[key])} is supported"
        )
    for text in ("start_tokens", "sep_tokens"):
        if spec.get(text):
            raise CheckpointError(
                f"{path}: {key} has {text} {spec[text]!r}; only end_tokens are supported"
            )
    return spec


def _pool_sizes(video: dict[str, Any], path: Path) -> tuple[tuple[int, int, int], ...]:
    """The TSP encoder's pool sizes: frames, rows and columns whose mean is one token."""
    sizes = video.get("pool_sizes") or ()
    for size in sizes:
        if not (
            isinstance(size, (list, tuple))
            and len(size) == 3
            and all(isinstance(length, int) and length >= 1 for length in size)
        ):
            raise CheckpointError(
                f"{path}: video_encoder's pool size is {size!r}; "
                "[frames, rows, columns] of at least 1 are expected"
            )
    return tuple((frames, rows, columns) for frames, rows, columns in sizes)
