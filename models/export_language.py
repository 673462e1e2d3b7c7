# SPDX-License-Identifier: Apache-2.0
"""The language part as a folder that other engines read: a text checkpoint, int4 by AutoAWQ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nvila_ros.errors import ExportError
from nvila_ros.models.config_files import read_json
from nvila_ros.models.part_files import checkpoint_folder, tensor_files

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# What of llm/ other engines read beside the weights.
PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
READERS = "vLLM, SGLang, LMDeploy, transformers"


def export_language(model: Path | str, out: Path) -> dict[str, object]:
    """Copies `llm/` to `out` in the form of a text checkpoint; returns what it holds.

    `out` must be new or empty. Weights are linked where the disk is the same, else copied.
    ExportError for a decoder that other engines do not know, or packed in a form they do not read.
    """
    source = checkpoint_folder(model) / "llm"
    weights = tensor_files(source)
    config = read_json(source / "config.json")
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ExportError(
            f"{source / 'config.json'} has model_type {kind!r}; {READERS} read "
            f"{', '.join(ARCHITECTURES)} from here"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists already; give a folder that is new or empty")
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for path in weights:
            _link(path, partial / path.name)
        for pattern in PATTERNS:
            for path in sorted(source.glob(pattern)):
                shutil.copyfile(path, partial / path.name)
        text = {**config, "architectures": [ARCHITECTURES[kind]]}
        (partial / "config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ExportError(f"cannot write {out}: {error.strerror or error}") from error
    quantization = config.get("quantization_config") or {}
    return {
        "out": str(out),
        "architecture": ARCHITECTURES[kind],
        "quantization": quantization.get("quant_method", "none"),
        "num_bytes": sum(path.stat().st_size for path in out.iterdir()),
        "readers": READERS,
    }


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)
