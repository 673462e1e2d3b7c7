# SPDX-License-Identifier: Apache-2.0
"""The last step: finished layers, the untouched rest and the configuration become one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from nvila_ros import __version__
from nvila_ros.models.config import Int8Config, NvilaConfig, QuantizationConfig
from nvila_ros.models.part_files import INDEX_FILE, PARTS, PICKLE_SUFFIXES
from nvila_ros.models.quantization import write_quantization
from nvila_ros.models.quantization_int8 import write_int8
from nvila_ros.models.reading import IGNORED_SUFFIXES
from nvila_ros.models.writing import PartWriter, Specification
from nvila_ros.training.quantize import decoder, tower
from nvila_ros.training.quantize.stored import StoredPart, to_half
from nvila_ros.training.quantize.workplace import Workplace

REPORT_FILE = "quantization.json"
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
LEFT_OUT = (INDEX_FILE, "README.md", "quant_config.json")


def write(
    workplace: Workplace,
    model: Path,
    target: Path,
    config: NvilaConfig,
    *,
    has_int8: bool,
    has_int4: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Make the folder beside the finished layers, then move it to its place."""
    folder = workplace.folder / "finished"
    shutil.rmtree(folder, ignore_errors=True)
    _copy_small_files(model, folder)
    report: dict[str, Any] = {"version": __version__, "settings": settings}
    int8_layers = config.vision.num_hidden_layers if has_int8 else 0
    int4_layers = config.language.num_hidden_layers if has_int4 else 0
    for part, count, names in (
        ("vision_tower", int8_layers, tower),
        ("mm_projector", 0, tower),
        ("llm", int4_layers, decoder),
    ):
        files = [names.layer_file(number) for number in range(count)]
        _write_part(workplace, StoredPart(model / part), folder / part, files)
        if count:
            report[part] = [
                workplace.read_json(names.report_file(number)) for number in range(count)
            ]
    _set_config(folder / "config.json", {"model_dtype": "torch.float16"})
    for part in PARTS:
        _set_config(folder / part / "config.json", {"torch_dtype": "float16"})
    if has_int8:
        entry = {"quantization_config": write_int8(Int8Config())}
        _set_config(folder / "vision_tower" / "config.json", entry)
    if has_int4:
        entry = {"quantization_config": write_quantization(QuantizationConfig(layout="awq_gemm"))}
        _set_config(folder / "llm" / "config.json", entry)
    _write_json(folder / REPORT_FILE, report)
    folder.rename(target)
    workplace.remove()
    return report


def _copy_small_files(model: Path, folder: Path) -> None:
    """Configurations, tokenizer, licence: all but weights and what describes the float model."""
    for path in sorted(model.rglob("*")):
        inside = path.relative_to(model)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if not path.is_file() or is_hidden or inside.parts[0] == "expected":
            continue
        if path.name not in LEFT_OUT and path.suffix not in WEIGHT_SUFFIXES:
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / inside)


def _write_part(workplace: Workplace, part: StoredPart, folder: Path, files: list[str]) -> None:
    """Layers that are done, and half-precision copies of what they do not replace."""
    folder.mkdir(parents=True, exist_ok=True)
    replaced = tuple(_prefix(part.folder.name, number) for number in range(len(files)))
    rest = [
        name
        for name in part.names
        if not name.startswith(replaced) and not name.endswith(IGNORED_SUFFIXES)
    ]
    specifications: dict[str, Specification] = {
        name: (torch.float16, part.shape(name)) for name in rest
    }
    for file in files:
        tensors = workplace.read_tensors(file)
        specifications |= {name: (each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    with PartWriter(folder, specifications) as writer:
        for name in rest:
            writer.write(name, to_half(part.read([name], torch.float16))[name])
        for file in files:
            for name, tensor in workplace.read_tensors(file).items():
                writer.write(name, tensor)
        writer.finish()


def _prefix(part: str, number: int) -> str:
    layers = "vision_model.encoder.layers" if part == "vision_tower" else "model.layers"
    return f"{layers}.{number}."


def _set_config(path: Path, entries: dict[str, Any]) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data.pop("dtype", None)  # as Transformers 5 names it
    _write_json(path, {**data, **entries})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
