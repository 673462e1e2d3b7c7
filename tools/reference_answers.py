# SPDX-License-Identifier: Apache-2.0
"""Writes what NVlabs/VILA's own class answers, for `nvila conformance` to compare with.

Needs a clone of github.com/NVlabs/VILA (b760c34 was used) and a Python of its own with torch,
transformers 4.46.0, accelerate, einops and opencv-python-headless; nothing of nvila_ros.

    python tools/reference_answers.py CLONE FOLDER

Every case of FOLDER/expected/cases.json that has no `<case>.safetensors` yet is answered on the
CPU in float32: its `parts` are shown with the pictures `<case>_<n>.png`, and the rest of its entry
is written. The class runs as it is, except where it asks for CUDA, flash attention or float16, and
where it calls two functions that only another file of the clone defines.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

IMAGE = "<image>"
NUM_GREEDY = 8
DEFAULT_NUM_ROWS = 48
OTHER_FILE = "llava/model/llava_arch.py"
BORROWED = ("merge_chessboard", "split_chessboard")
UNUSED_PACKAGES = ("s2wrapper", "torchvision")  # imported by the clone, not needed here


def import_reference(clone: Path) -> types.ModuleType:
    """The module with the reference's class, which can then run without CUDA."""
    for name in UNUSED_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            stub = types.ModuleType(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
            stub.forward = None  # type: ignore[attr-defined]
            sys.modules[name] = stub
    package = types.ModuleType("vila_reference")
    package.__path__ = [str(clone / "llava" / "remote_code")]
    sys.modules["vila_reference"] = package
    module = importlib.import_module("vila_reference.modeling_vila")

    tower = importlib.import_module("transformers").SiglipVisionModel
    load_tower = tower.from_pretrained

    def load_without_flash_attention(*arguments: Any, **options: Any) -> Any:
        return load_tower(*arguments, **{**options, "attn_implementation": "sdpa"})

    tower.from_pretrained = load_without_flash_attention
    for name, function in borrowed_functions(clone / OTHER_FILE).items():
        setattr(module.VILAForCausalLM, name, staticmethod(function))
    module.VILAForCausalLM.post_config = lambda model: model.eval()  # without its float16
    torch.Tensor.half = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    return module


def borrowed_functions(path: Path) -> dict[str, Any]:
    """Two functions of a file whose other imports need not be there."""
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name in BORROWED
    ]
    for node in found:
        node.decorator_list = []
    scope: dict[str, Any] = {
        "torch": torch,
        "rearrange": importlib.import_module("einops").rearrange,
    }
    exec(compile(ast.Module(body=list(found), type_ignores=[]), str(path), "exec"), scope)
    return {name: scope[name] for name in BORROWED}


def load(module: types.ModuleType, folder: Path) -> Any:
    """The checkpoint in the reference's class; three random columns are added to its head."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = module.VILAConfig(**settings)
    config._name_or_path = config.resume_path = str(folder)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return module.VILAForCausalLM(config, device_map="cpu").float().eval()


def prepare(model: Any, prompt: list[Any]) -> dict[str, Any]:
    """Run the reference's `generate_content` up to its decoder."""

    captured: dict[str, Any] = {}

    def capture(**inputs: Any) -> torch.Tensor:
        captured.update(inputs)
        return torch.zeros(1, 1, dtype=torch.long)

    model.generate = capture
    settings = importlib.import_module("transformers").GenerationConfig(do_sample=False)
    model.generate_content(prompt, settings)
    return captured


@torch.inference_mode()
def answer(
    model: Any, parts: list[str], images: list[Image.Image], vocab_size: int, num_rows: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One case -> its entry in cases.json and its tensors."""
    pictures = iter(images)
    inputs = prepare(model, [next(pictures) if part == IMAGE else part for part in parts])
    ids, media, settings = inputs["input_ids"], inputs["media"], inputs["media_config"]
    embeds, _, mask = model._embed(ids, media, settings, None, None)
    logits = model.llm(inputs_embeds=embeds, attention_mask=mask).logits[0, :, :vocab_size]
    greedy = model.llm.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NUM_GREEDY,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    length = embeds.shape[1]
    rows = torch.arange(0, length, max(1, length // num_rows))
    tensors = {
        "input_ids": ids[0],
        "fused_length": torch.tensor(length),
        "rows": rows,
        "embeds_rows": embeds[0, rows],
        "logits_rows": logits[rows],
        "last_logits": logits[-1],
        "greedy": greedy,
    }
    blocks = settings["image"].get("block_sizes") if images else None
    entry: dict[str, Any] = {
        "parts": parts,
        "image_sizes_wh": [list(image.size) for image in images],
        "block_sizes": [list(block) for block in blocks] if blocks else None,
    }
    if images:
        tiles = torch.stack(media["image"])
        bytes_ = (tiles * 127.5 + 127.5).round().to(torch.uint8).numpy()
        entry["tile_sha256_uint8_chw"] = [
            hashlib.sha256(tile.tobytes()).hexdigest() for tile in bytes_
        ]
        tensors["tile_mean"] = tiles.mean((2, 3))
    return entry, {key: tensor.clone().contiguous() for key, tensor in tensors.items()}


def main() -> None:
    """Answer the cases that have no answer yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=DEFAULT_NUM_ROWS, help="about how many rows")
    arguments = parser.parse_args()
    expected = arguments.folder / "expected"
    cases = json.loads((expected / "cases.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    model = load(import_reference(arguments.clone), arguments.folder)
    language = json.loads((arguments.folder / "llm" / "config.json").read_text(encoding="utf-8"))
    for name, case in cases.items():
        path = expected / f"{name}.safetensors"
        if path.exists():
            continue
        count = sum(part == IMAGE for part in case["parts"])
        images = [Image.open(expected / f"{name}_{index}.png") for index in range(count)]
        cases[name], tensors = answer(
            model, case["parts"], images, language["vocab_size"], arguments.rows
        )
        save_file(tensors, path)
        print(name, int(tensors["fused_length"]), cases[name]["block_sizes"], flush=True)
    (expected / "cases.json").write_text(json.dumps(cases, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
