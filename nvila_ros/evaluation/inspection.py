# SPDX-License-Identifier: Apache-2.0
"""Inspection: what a checkpoint is and needs, from its configuration and headers alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.config_files import load_config
from nvila_ros.models.footprint import FORMULA, Gpu, find_gpu, footprints, num_prompt_tokens
from nvila_ros.models.headers import StoredPart, read_part
from nvila_ros.models.part_files import PARTS, checkpoint_folder
from nvila_ros.models.prompt import MEDIA_TOKENS

if TYPE_CHECKING:
    from rich.console import RenderableType

AS_STORED = "as_stored"
ARITHMETIC = {
    AS_STORED: "as stored, floats in 16 bits",
    "fp16": "fp16",
    "w8a8_w4a16": "W8A8 tower, W4A16 decoder",
}


def inspect(folder: Path | str, num_frames: int = 8) -> dict[str, Any]:
    """Everything as one JSON object; no weight is read.

    `problem` says why `weights.load` would refuse the folder, None where it would not.
    """
    folder = checkpoint_folder(folder)
    config = load_config(folder)
    parts = {part: read_part(folder / part) for part in PARTS}
    tokens, problem = None, None
    try:
        _, tokenizer, _ = weights.open_checkpoint(folder)
        tokens = {name: tokenizer.id(name) for name in MEDIA_TOKENS}
    except CheckpointError as error:
        problem = str(error)
    gpu = find_gpu()
    return {
        "model": str(folder),
        "family": family(config),
        "problem": problem,
        "num_parameters": sum(part.num_parameters for part in parts.values()),
        "num_bytes": sum(part.num_bytes for part in parts.values()),
        "quantization": quantization(config),
        "parts": {name: asdict(part) for name, part in parts.items()},
        "sizes": asdict(config),
        "media_token_ids": tokens,
        "tokens_per_frame": config.tokens_per_frame,
        "num_frames": num_frames,
        "num_prompt_tokens": num_prompt_tokens(config, num_frames),
        "max_prompt_tokens": config.language.model_max_length,
        "memory_bytes": _memory(config, parts, num_frames, gpu),
        "memory_formula": FORMULA,
        "gpu": None if gpu is None else asdict(gpu),
    }


def _memory(
    config: NvilaConfig, parts: dict[str, StoredPart], num_frames: int, gpu: Gpu | None
) -> dict[str, dict[str, Any]]:
    """Bytes by arithmetic and use; of a quantized checkpoint also as it is."""
    sizes = footprints(config, num_frames)
    if quantization(config) is not None:
        half = sum(part.num_half_bytes for part in parts.values())
        sizes = {AS_STORED: replace(sizes["fp16"], weights=half), **sizes}
    return {
        name: {
            **asdict(footprint),
            "total": footprint.total,
            "fits": None if gpu is None else footprint.total <= gpu.free_bytes,
        }
        for name, footprint in sizes.items()
    }


def family(config: NvilaConfig) -> str:
    """Which released family has these features."""
    if config.language.model_type == "llama":
        return "NaVILA (VILA-1.5)"
    if config.image_aspect_ratio == "dynamic_s2":
        return "NVILA"
    if config.video_pool_sizes or config.num_time_tokens:
        return "NVILA-Video"
    if config.image_aspect_ratio == "dynamic" or config.downsample_rate == 3:
        return "NVILA-Lite"
    return "NVILA-Video" if config.image_aspect_ratio == "resize" else "NVILA"


def quantization(config: NvilaConfig) -> str | None:
    """How quantized weights are stored, None where all are floats."""
    packed = config.language.quantization
    kinds = []
    if packed is not None:
        kinds.append(f"decoder {packed.layout}, 4 bits in groups of {packed.group_size}")
    if config.vision.quantization is not None:
        kinds.append("tower in 8 bits")
    return "; ".join(kinds) or None


def tables(result: dict[str, Any], *, with_formulas: bool = False) -> list[RenderableType]:
    """The same for people: what it is, parts, sizes, memory, whether it fits and loads."""
    gpu = result["gpu"]
    place = (
        "This machine has no CUDA GPU, so nothing is said about what fits."
        if gpu is None
        else f"GPU: {gpu['name']}, {_size(gpu['free_bytes'])} of {_size(gpu['total_bytes'])} free."
    )
    views: list[RenderableType] = [
        f"{result['model']}",
        f"{result['family']}, {_count(result['num_parameters'])} parameters, "
        f"{_size(result['num_bytes'])} on disk; {result['quantization'] or 'all weights floats'}",
        _parts_table(result),
        _rows_table("sizes", _sizes(result)),
        _memory_table(result),
    ]
    if with_formulas:
        views.append(_rows_table("how memory is estimated", result["memory_formula"]))
    return [*views, place, _verdict(result)]


def _verdict(result: dict[str, Any]) -> str:
    if result["problem"] is not None:
        return f"It will not load: {result['problem']}"
    count = sum(part["num_tensors"] for part in result["parts"].values())
    return f"Complete: all {count} tensors are there and fit config.json; the tokenizer fits too."


def _rows_table(title: str, rows: dict[str, str]) -> RenderableType:
    from rich.table import Table

    view = Table(title=title, show_header=False, title_justify="left")
    for name, text in rows.items():
        view.add_row(name, text)
    return view


def _parts_table(result: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    view = Table(title="parts", title_justify="left")
    view.add_column("part")
    for heading in ("parameters", "on disk", "files", "tensors"):
        view.add_column(heading, justify="right")
    view.add_column("dtypes")
    for name, part in result["parts"].items():
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in part["dtypes"].items())
        counts = str(part["num_files"]), str(part["num_tensors"])
        view.add_row(
            name, _count(part["num_parameters"]), _size(part["num_bytes"]), *counts, dtypes
        )
    view.add_section()
    view.add_row("all", _count(result["num_parameters"]), _size(result["num_bytes"]))
    return view


def _sizes(result: dict[str, Any]) -> dict[str, str]:
    sizes = result["sizes"]
    vision, language = sizes["vision"], sizes["language"]
    pools = [list(pool) for pool in sizes["video_pool_sizes"]]
    media = result["media_token_ids"] or {}
    tiles = "one tile" if sizes["image_aspect_ratio"] == "resize" else "tiled"
    tiles = f"up to {sizes['max_tiles']} tiles" if tiles == "tiled" else tiles
    return {
        "tower": f"{vision['num_hidden_layers']} layers of {vision['hidden_size']}, "
        f"{vision['image_size']} px in patches of {vision['patch_size']}",
        "projector": sizes["mm_projector_type"],
        "decoder": f"{language['model_type']}, {language['num_hidden_layers']} layers of "
        f"{language['hidden_size']}, {language['num_attention_heads']} heads on "
        f"{language['num_key_value_heads']}, vocabulary {language['vocab_size']}, "
        f"{'tied' if language['tie_word_embeddings'] else 'own'} head",
        "media tokens": ", ".join(f"{name} = {index}" for name, index in media.items())
        or "unknown",
        "a single picture": f"{sizes['image_aspect_ratio']}: {tiles}",
        "tokens per frame": f"{result['tokens_per_frame']} and a newline",
        "video": f"{sizes['num_video_frames']} frames, pooled by {pools or 'nothing'}, "
        f"{sizes['num_time_tokens']} time tokens",
        "prompt": f"at most {result['num_prompt_tokens']} tokens for {result['num_frames']} frames "
        f"and text, trained up to {result['max_prompt_tokens']}",
    }


def _memory_table(result: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    frames = result["num_frames"]
    view = Table(
        title=f"GPU memory of a decision on {frames} frames, estimated", title_justify="left"
    )
    view.add_column("weights held as")
    for heading in ("weights", "KV cache", "activations", "all"):
        view.add_column(heading, justify="right")
    view.add_column("fits this GPU")
    for name, memory in result["memory_bytes"].items():
        numbers = (memory[key] for key in ("weights", "cache", "activations", "total"))
        view.add_row(ARITHMETIC[name], *map(_size, numbers), _fits(memory, result["gpu"]))
    return view


def _fits(memory: dict[str, Any], gpu: dict[str, Any] | None) -> str:
    if gpu is None:
        return "no GPU here"
    left = gpu["free_bytes"] - memory["total"]
    return f"yes, {_size(left)} left" if left >= 0 else f"no, {_size(-left)} short"


def _count(number: int) -> str:
    """1234567 -> '1.23 M'."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def _size(num_bytes: int) -> str:
    """1572864 -> '1.5 MiB'."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
