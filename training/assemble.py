# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that stage 1 starts from: a released tower and decoder, a random projector."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.config_files import read_language
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.reading import PartReader
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.family import LANGUAGE_SIZES, load_family
from nvila_ros.training.stage_recipe import RECIPES, families


def assemble(family: str, vision_tower: Path, llm: Path, out: Path, *, seed: int = 1) -> None:
    """Writes the three-folder layout in bfloat16; a CheckpointError where a part does not fit."""
    if family not in families():
        raise CheckpointError(
            f"there is no family {family!r}; one of {', '.join(families())} is expected"
        )
    own = load_family(RECIPES / family)
    language = read_language(_folder(llm, "llm") / "config.json")
    wrong = [
        f"{name} is {getattr(language, name)}, expected {getattr(own.network.language, name)}"
        for name in LANGUAGE_SIZES
        if getattr(language, name) != getattr(own.network.language, name)
    ]
    if wrong:
        raise CheckpointError(f"{llm} is not the decoder of {family}: {'; '.join(wrong)}")
    tokenizer = Tokenizer.load(llm)
    language = dataclasses.replace(language, model_max_length=own.network.language.model_max_length)
    with torch.device("meta"):
        model = Nvila(dataclasses.replace(own.network, language=language))
    folders = {"vision_tower": _folder(vision_tower, "vision_tower"), "llm": llm}
    for part, folder in folders.items():
        module = model.get_submodule(part)
        reader = PartReader(folder, module, weights.quantized_reader(module, language))
        stream = dict(reader.stream(torch.bfloat16, torch.device("cpu")))
        module.load_state_dict(stream, assign=True)
    _random_projector(model, seed)
    tokenizer.check_template(model.config.chat_template, language.vocab_size, llm)
    weights.save(out, model, tokenizer, torch.bfloat16)


def _random_projector(model: Nvila, seed: int) -> None:
    """Normal weights of deviation 0.02, zero biases, unit norms."""
    model.mm_projector.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in model.mm_projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    model.mm_projector.to(torch.bfloat16)


def _folder(path: Path, part: str) -> Path:
    """A folder that has a config.json."""
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json; give the folder of the {part} as it was downloaded"
        )
    return path
