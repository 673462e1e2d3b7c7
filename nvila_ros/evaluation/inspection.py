# SPDX-License-Identifier: Apache-2.0
"""Inspection: what a checkpoint is and needs, from its configuration and headers alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_ros.errors import CheckpointError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.config_files import load_config
from nvila_ros.models.footprint import FORMULA, find_gpu, footprints, num_prompt_tokens
from nvila_ros.models.headers import read_part

if TYPE_CHECKING:
    from rich.console import RenderableType

PARTS = ("vision_tower", "mm_projector", "llm")
ARITHMETIC = {"fp16": "fp16", "w8a8_w4a16": "W8A8 tower, W4A16 decoder"}


def inspect(folder: Path | str, num_frames: int = 8) -> dict[str, Any]:
    """Everything as one JSON object; no weight is read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; point at a checkpoint's folder")
    config = load_config(folder)
    parts = {part: read_part(folder / part) for part in PARTS}
    gpu = find_gpu()
    memory = {
        name: {
            **asdict(footprint),
            "total": footprint.total,
            "fits": None if gpu is None else footprint.total <= gpu.free_bytes,
        }
        for name, footprint in footprints(config, num_frames).items()
    }
    return {
        "model": str(folder),
        "family": family(config),
        "num_parameters": sum(part.num_parameters for part in parts.values()),
        "num_bytes": sum(part.num_bytes for part in parts.values()),
        "quantization": quantization(config),
        "parts": {name: asdict(part) for name, part in parts.items()},
        "sizes": asdict(config),
        "tokens_per_frame": config.tokens_per_frame,
        "num_frames": num_frames,
        "num_prompt_tokens": num_prompt_tokens(config, num_frames),
        "max_prompt_tokens": config.language.model_max_length,
        "memory_bytes": memory,
        "memory_formula": FORMULA,
        "gpu": None if gpu is None else asdict(gpu),
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
    """How the decoder's weights are stored, None where they are floats."""
    packed = config.language.quantization
    if packed is None:
        return None
    return f"{packed.layout}, 4 bits in groups of {packed.group_size}"


def tables(result: dict[str, Any]) -> list[RenderableType]:
    """The same for people: parts, sizes, memory."""
    gpu = result["gpu"]
    place = (
        "This machine has no GPU to compare with."
        if gpu is None
        else f"{gpu['name']}: {_size(gpu['free_bytes'])} of {_size(gpu['total_bytes'])} are free."
    )
    return [
        _parts_table(result),
        _rows_table("sizes", _sizes(result)),
        _memory_table(result),
        _rows_table("how memory is estimated", result["memory_formula"]),
        place,
    ]


def _rows_table(title: str, rows: dict[str, str]) -> RenderableType:
    from rich.table import Table

    view = Table(title=title, show_header=False)
    for name, text in rows.items():
        view.add_row(name, text)
    return view


def _parts_table(result: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    stored = result["quantization"] or "floats"
    view = Table(title=f"{result['model']}: {result['family']}, decoder stored as {stored}")
    view.add_column("part")
    for heading in ("parameters", "on disk", "tensors"):
        view.add_column(heading, justify="right")
    view.add_column("dtypes")
    for name, part in result["parts"].items():
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in part["dtypes"].items())
        numbers = _count(part["num_parameters"]), _size(part["num_bytes"]), str(part["num_tensors"])
        view.add_row(name, *numbers, dtypes)
    view.add_section()
    view.add_row("all", _count(result["num_parameters"]), _size(result["num_bytes"]))
    return view


def _sizes(result: dict[str, Any]) -> dict[str, str]:
    sizes = result["sizes"]
    vision, language = sizes["vision"], sizes["language"]
    pools = [list(pool) for pool in sizes["video_pool_sizes"]]
    return {
        "tower": f"{vision['num_hidden_layers']} layers of {vision['hidden_size']}, "
        f"{vision['image_size']} px in patches of {vision['patch_size']}",
        "projector": sizes["mm_projector_type"],
        "decoder": f"{language['model_type']}, {language['num_hidden_layers']} layers of "
        f"{language['hidden_size']}, {language['num_attention_heads']} heads on "
        f"{language['num_key_value_heads']}, vocabulary {language['vocab_size']}, "
        f"{'tied' if language['tie_word_embeddings'] else 'own'} head",
        "pictures": f"{sizes['image_aspect_ratio']}, at most {sizes['max_tiles']} tiles",
        "tokens per frame": f"{result['tokens_per_frame']} and a newline",
        "video": f"{sizes['num_video_frames']} frames, pooled by {pools or 'nothing'}, "
        f"{sizes['num_time_tokens']} time tokens",
        "prompt": f"{result['num_prompt_tokens']} tokens for {result['num_frames']} frames and "
        f"text, trained up to {result['max_prompt_tokens']}",
    }


def _memory_table(result: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    view = Table(title=f"memory for {result['num_frames']} frames")
    view.add_column("arithmetic")
    for heading in ("weights", "KV cache", "activations", "all"):
        view.add_column(heading, justify="right")
    view.add_column("fits")
    for name, memory in result["memory_bytes"].items():
        numbers = (memory[key] for key in ("weights", "cache", "activations", "total"))
        fits = {None: "no GPU", True: "yes", False: "no"}[memory["fits"]]
        view.add_row(ARITHMETIC[name], *map(_size, numbers), fits)
    return view


def _count(number: int) -> str:
    """1234567 -> '1.23 M'."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def _size(num_bytes: int) -> str:
    """1572864 -> '1.5 MiB'."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
