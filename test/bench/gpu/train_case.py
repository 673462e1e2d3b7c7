# SPDX-License-Identifier: Apache-2.0
"""What a training row measures: a network of a released size, what learns, and packed decisions.

One sample is one navigation decision as nvila-lite trains on it: eight frames of 121 tokens and a
newline each, about 110 tokens of text, twelve of them an answer that is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from shapes import config_of, random_model
from torch import Tensor, nn

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.adapters import AdaptConfig, adapt
from nvila_ros.training.compiled import compile_layers
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.data.encoding import IGNORED, Encoded, Media
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import PackedBatch, pack
from nvila_ros.training.flops import batch_flops
from nvila_ros.training.fp8 import PrecisionConfig, make_adamw, to_float8
from nvila_ros.training.fused_loss import linear_cross_entropy
from nvila_ros.training.learner import checkpoint_layers
from nvila_ros.training.tower_layers import fuse_tower

NUM_FRAMES, TEXT_TOKENS, ANSWER_TOKENS = 8, 110, 12
LEARNING_RATE = 1e-5
PARTS = ("vision_tower", "mm_projector", "llm")


@dataclass(frozen=True)
class Case:
    """One way of training one network."""

    name: str
    network: str = "lite8b"
    has_tower: bool = False  # frames pass tower and projector, and these learn too
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    num_layers: int | None = None  # of the decoder; None: all of them
    checkpoints: tuple[bool, ...] = (False, True)  # activations kept, or made again
    max_samples: int | None = None  # None: as many as fit
    budget: float = 1.0  # share of activations that compiled layers keep
    is_compiled: bool = True
    attention: Literal["flash", "cudnn"] = "flash"  # of the tower
    fuses_tower: bool = False  # its layers by `tower_layers`, not compiled

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the network that are there."""
        return PARTS if self.has_tower else ("llm",)

    def parts_that(self, *choices: str) -> tuple[str, ...]:
        """Parts that are there and learn in one of these ways."""
        ways = zip(PARTS, (self.adapt.tower, self.adapt.projector, self.adapt.llm), strict=True)
        return tuple(part for part, way in ways if part in self.parts and way in choices)


def network(case: Case, *, is_small: bool, device: torch.device) -> Nvila:
    """Random weights in bfloat16, adapted and converted; `is_small` has a layer or two."""
    config = config_of(case.network)
    layers = 2 if is_small else case.num_layers
    if layers is not None:
        config = shortened(config, layers, tower_layers=2 if is_small else None)
    model = random_model(config, device, torch.bfloat16, case.parts)
    tower = model.vision_tower
    model.requires_grad_(False)
    for part in case.parts:
        model.get_submodule(part).requires_grad_(True)
    tower.vision_model.post_layernorm.requires_grad_(False)
    tower.vision_model.encoder.layers[tower.num_layers_to_run :].requires_grad_(False)
    adapt(model, case.adapt)
    to_float8(model, case.precision)
    if case.is_compiled:
        compile_layers(model, budget=case.budget)
    if case.fuses_tower:
        fuse_tower(model)
    return model.train()


def shortened(config: NvilaConfig, layers: int, tower_layers: int | None) -> NvilaConfig:
    """The same widths with fewer layers."""
    language = replace(config.language, num_hidden_layers=layers)
    vision = config.vision
    if tower_layers is not None:
        vision = replace(vision, num_hidden_layers=tower_layers + 1)
    return replace(config, language=language, vision=vision)


def decisions(config: NvilaConfig, count: int, *, has_frames: bool, seed: int = 0) -> PackedBatch:
    """A packed batch of random decisions whose lengths differ a little, padded for float8."""
    generator = torch.Generator().manual_seed(seed)
    samples = [_decision(config, has_frames, generator, number) for number in range(count)]
    return pack(samples, multiple=128)


def _decision(
    config: NvilaConfig, has_frames: bool, generator: torch.Generator, number: int
) -> Encoded:
    visual = NUM_FRAMES * (config.tokens_per_frame + 1)
    text = TEXT_TOKENS + int(torch.randint(-24, 25, (), generator=generator))
    length = visual + text
    ids = torch.randint(0, 150_000, (length,), generator=generator)
    labels = torch.full((length,), IGNORED)
    labels[-ANSWER_TOKENS:] = ids[-ANSWER_TOKENS:]
    side = config.vision.image_size
    tiles = torch.zeros(0, 3, side, side, dtype=torch.uint8)
    places = torch.zeros(0, dtype=torch.long)
    if has_frames:
        shape = (NUM_FRAMES, 3, side, side)
        tiles = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        frame = torch.arange(config.tokens_per_frame)
        starts = torch.arange(NUM_FRAMES) * (config.tokens_per_frame + 1) + 30
        places = (starts[:, None] + frame).flatten()
    media = tuple(Media(num_tiles=1) for _ in range(NUM_FRAMES)) if has_frames else ()
    return Encoded(
        key=str(number),
        source="random",
        ids=ids,
        labels=labels,
        tiles=tiles,
        media=media,
        places=places,
        weight=1.0,
    )


class Trainer:
    """A network, its optimizer and one step."""

    def __init__(self, case: Case, model: Nvila, *, checkpoints: bool) -> None:
        self.case, self.model, self.device = case, model, model.device
        self.is_adapted = case.adapt.is_partial
        plain = [(layer, layer.forward) for layer in _layers(model)]
        if checkpoints:
            checkpoint_layers(model)
        self._plain = plain
        parameters = [p for p in model.parameters() if p.requires_grad and not p.is_meta]
        groups = [{"params": parameters, "lr": LEARNING_RATE}]
        self.optimizer = make_adamw(groups, case.precision)

    def close(self) -> None:
        """Layers keep their activations again; moments go."""
        for layer, forward in self._plain:
            layer.forward = forward
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def loss(self, batch: PackedBatch) -> Tensor:
        """Mean cross entropy of the answers."""
        model = self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_adapted):
            embeds = embed_batch(model, batch, touches_all=False)
            is_half = embeds.dtype == torch.bfloat16
            attention = SampleAttention(
                batch.segments, embeds.device, "auto" if is_half else "split", torch.bfloat16
            )
            hidden = model.llm(embeds, batch.positions, None, attention)[0]
            llm = model.llm
            head = llm.model.embed_tokens if llm.lm_head is None else llm.lm_head
            labelled = (batch.targets, batch.target_weights)
            rows = batch.target_rows
            total = linear_cross_entropy(hidden, head.weight, *labelled, rows=rows)
        return total / (ANSWER_TOKENS * len(batch.lengths))

    def step(self, batch: PackedBatch) -> Tensor:
        """Batch to the device, forward, backward, update."""
        loss = self.loss(batch.to(self.device, torch.bfloat16))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def flops(self, batch: PackedBatch) -> float:
        """Of one step, recomputation not counted; the padding is no work."""
        frames = len(batch.pixels)
        targets = ANSWER_TOKENS * len(batch.lengths)
        learns = self.case.parts_that("full")
        adapts = self.case.parts_that("layernorm", "lora", "qlora")
        return batch_flops(self.model.config, batch.lengths, frames, targets, learns, adapts)


def _layers(model: Nvila) -> list[nn.Module]:
    return [*model.llm.model.layers, *model.vision_tower.vision_model.encoder.layers]


def cases() -> dict[str, Callable[[], Case]]:
    """Every row by name."""
    float8_states = {"optimizer_states": "float8"}

    def decoder(name: str, compute: str) -> Callable[[], Case]:
        return lambda: Case(name, precision=PrecisionConfig(compute=compute, **float8_states))

    def tuned(name: str, tower: str, llm: str) -> Callable[[], Case]:
        return lambda: Case(
            name,
            has_tower=True,
            adapt=AdaptConfig(tower=tower, llm=llm, rank=64, alpha=16, dropout=0.05),
            max_samples=1,
        )

    def whole(name: str, network: str) -> Callable[[], Case]:
        precision = PrecisionConfig(**float8_states)
        return lambda: Case(name, network, has_tower=True, precision=precision, budget=0.7)

    def kept(name: str, **changes: Any) -> Callable[[], Case]:
        return lambda: replace(whole(name, "lite2b")(), budget=1.0, checkpoints=(False,), **changes)

    return {
        "lite2b_kept": kept("lite2b_kept"),
        "lite2b_fused": kept("lite2b_fused", fuses_tower=True),
        "lite2b_cudnn": kept("lite2b_cudnn", attention="cudnn"),
        "decoder_bf16": decoder("decoder_bf16", "bfloat16"),
        "decoder_fp8_tensor": decoder("decoder_fp8_tensor", "float8_tensor"),
        "decoder_fp8_row": decoder("decoder_fp8_row", "float8_row"),
        "lite2b": whole("lite2b", "lite2b"),
        "lite8b": whole("lite8b", "lite8b"),
        "ln_qlora": tuned("ln_qlora", "layernorm", "qlora"),
        "ln_lora": tuned("ln_lora", "layernorm", "lora"),
        "lora_lora": tuned("lora_lora", "lora", "lora"),
        "lora_qlora": tuned("lora_qlora", "lora", "qlora"),
    }
