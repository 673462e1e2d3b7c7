# SPDX-License-Identifier: Apache-2.0
"""A family of models: the sizes that its stages hold each other to, and where the first starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nvila_ros.config import load
from nvila_ros.errors import CheckpointError, ConfigError, TrainingError
from nvila_ros.models import weights
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.config_files import load_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.stage_recipe import NetworkChange, read_yaml

# What two checkpoints of one family have in common; the vocabulary may grow between stages.
VISION_SIZES: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
VISION_SIZES += ("image_size", "patch_size")
LANGUAGE_SIZES: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
LANGUAGE_SIZES += ("num_key_value_heads", "head_dim", "tie_word_embeddings")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Sizes shared by a chain of stages, from `family.yaml`."""

    name: str
    title: str
    # scratch: random weights and the simulator's words; parts: a released tower and decoder.
    start: Literal["scratch", "parts"]
    network: NvilaConfig
    vision_tower: str = ""  # of `parts`: the model whose files the tower comes from
    llm: str = ""  # of `parts`: the model whose files decoder and tokenizer come from


def load_family(folder: str | Path) -> Family:
    """Reads `family.yaml` of a recipes folder."""
    path = Path(folder) / "family.yaml"
    return load(Family, read_yaml(path), str(Path(folder).name) + "/family.yaml")


def from_scratch(family: Family, seed: int) -> tuple[Nvila, Tokenizer]:
    """Random weights and the tokenizer of the simulator's words; only for `start: scratch`."""
    if family.start != "scratch":
        raise TrainingError(
            f"the first stage of {family.name} starts from {family.vision_tower} and {family.llm}: "
            f"download both, run `nvila assemble {family.name} --vision-tower FOLDER --llm FOLDER "
            "OUT`, then give the stage --start OUT"
        )
    from nvila_ros.training.vocabulary import build_tokenizer

    tokenizer = build_tokenizer()
    language = dataclasses.replace(family.network.language, vocab_size=tokenizer.vocab_size)
    model = Nvila.from_scratch(dataclasses.replace(family.network, language=language), seed)
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    return model, tokenizer


def check_start(family: Family, folder: Path, config: NvilaConfig | None = None) -> NvilaConfig:
    """The start checkpoint's sizes; a CheckpointError names what is not of this family."""
    if not folder.exists():
        raise CheckpointError(
            f"the start checkpoint {folder} does not exist; run the stage before this one, or give "
            "another folder with --start"
        )
    config = config or load_config(folder)
    wanted = family.network
    found: list[str] = []
    for part, names in (("vision", VISION_SIZES), ("language", LANGUAGE_SIZES)):
        own, other = getattr(config, part), getattr(wanted, part)
        for name in names:
            has, expects = getattr(own, name), getattr(other, name)
            if has != expects:
                found.append(f"{part} {name} is {has}, expected {expects}")
    for name in ("mm_projector_type", "mm_hidden_size"):
        has, expects = getattr(config, name), getattr(wanted, name)
        if has != expects:
            found.append(f"{name} is {has!r}, expected {expects!r}")
    if config.language.quantization or config.vision.quantization:
        found.append("its weights are quantized, expected float weights")
    if found:
        raise CheckpointError(
            f"{folder} is no checkpoint of {family.name}: {'; '.join(found[:4])}; start from one "
            "of this family, or use the recipes of the family that it belongs to"
        )
    return config


def load_start(family: Family, folder: Path, *, is_empty: bool = False) -> tuple[Nvila, Tokenizer]:
    """The network in float32 on the CPU, or on the meta device where another rank has its weights.

    Every size is checked before a weight is read.
    """
    check_start(family, folder)
    if not is_empty:
        return weights.load(folder, "cpu", torch.float32)
    model, tokenizer, _ = weights.open_checkpoint(folder)
    model.connect(tokenizer.media_ids, tokenizer.encode(model.config.frame_end_text))
    return model, tokenizer


def change_network(model: Nvila, tokenizer: Tokenizer, change: NetworkChange) -> None:
    """Applies what a stage changes: how pictures are shown, and time tokens in the vocabulary."""
    config = model.config
    given = dict(change.given)
    language = config.language
    if "model_max_length" in given:
        length = given.pop("model_max_length")
        language = dataclasses.replace(
            language,
            model_max_length=length,
            max_position_embeddings=max(length, language.max_position_embeddings),
        )
    if given.get("num_time_tokens", config.num_time_tokens) < config.num_time_tokens:
        raise ConfigError(
            f"network: num_time_tokens is {given['num_time_tokens']}, the start checkpoint has "
            f"{config.num_time_tokens}; a vocabulary does not shrink"
        )
    config = dataclasses.replace(config, **given, language=language)
    names = [config.time_token_format.format(t=t) for t in range(config.num_time_tokens)]
    tokenizer.add_tokens(names)
    rows = max([language.vocab_size, *(tokenizer.id(name) + 1 for name in names)])
    if rows > language.vocab_size:
        _grow(model, rows)
        language = dataclasses.replace(language, vocab_size=rows)
        config = dataclasses.replace(config, language=language)
    model.config, model.llm.config = config, language


def _grow(model: Nvila, rows: int) -> None:
    """More rows in embedding and head: the mean of those that are there."""
    table = model.llm.model.embed_tokens
    table.weight = nn.Parameter(_with_rows(table.weight.detach(), rows))
    table.num_embeddings = rows
    if model.llm.lm_head is not None:
        head = model.llm.lm_head
        head.weight = nn.Parameter(_with_rows(head.weight.detach(), rows))
        head.out_features = rows


def _with_rows(table: Tensor, rows: int) -> Tensor:
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])
