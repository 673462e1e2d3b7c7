# SPDX-License-Identifier: Apache-2.0
"""The network as training sees it: a packed batch in, the weighted sum of its loss out."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import PackedBatch
from nvila_ros.training.fused_loss import IGNORED, LossConfig, linear_cross_entropy
from nvila_ros.training.stage_recipe import PARTS, StageRecipe
from nvila_ros.training.time_tokens import time_loss


class Learner(nn.Module):
    """One call is one forward pass with its loss: sharded parameters are whole inside it."""

    def __init__(
        self,
        model: Nvila,
        loss: LossConfig,
        dtype: torch.dtype,
        time_ids: Sequence[int] = (),
        time_std: float = 1.0,
    ) -> None:
        """`time_ids` are the time tokens in order, if their targets are to be smoothed."""
        super().__init__()
        self.model = model
        self.loss, self.dtype, self.time_std = loss, dtype, time_std
        self.time_ids = tuple(time_ids)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The sum over learned tokens of weight * cross entropy, a float32 scalar.

        A batch without pictures runs the tower and the projector on a black tile that counts zero
        times: with sharded weights every rank has to gather them together.
        """
        model = self.model
        embeds = embed_batch(model, batch)  # (1, L, D)
        attention = SampleAttention(batch.segments, embeds.device, dtype=self.dtype)
        hidden = model(embeds, batch.positions, None, attention)[0]  # (L, D)
        head = model.llm.model.embed_tokens if model.llm.lm_head is None else model.llm.lm_head
        weight, labels, weights = head.weight, batch.targets, batch.target_weights
        if not self.time_ids:
            rows = batch.target_rows
            return linear_cross_entropy(hidden, weight, labels, weights, self.loss, rows=rows)
        time_ids = torch.tensor(self.time_ids, device=labels.device)
        is_time = torch.isin(labels, time_ids)
        plain = labels.masked_fill(is_time, IGNORED)
        total = linear_cross_entropy(hidden, weight, plain, weights, self.loss)
        rows = is_time.nonzero().squeeze(-1)
        if not len(rows):
            return total
        times = (hidden[rows], weight, labels[rows], weights[rows])
        return total + time_loss(*times, time_ids, self.time_std)


def freeze(model: Nvila, recipe: StageRecipe) -> None:
    """Leaves gradients only to the parts that the recipe gives a rate, and of these to what runs.

    The tower's last layers and its final norm are in every checkpoint but feed nothing.
    """
    for part in PARTS:
        if getattr(recipe.learn, part) is None:
            model.get_submodule(part).requires_grad_(False)
    tower = model.vision_tower
    for layer in tower.vision_model.encoder.layers[tower.num_layers_to_run :]:
        layer.requires_grad_(False)
    tower.vision_model.post_layernorm.requires_grad_(False)


def checkpoint_layers(model: Nvila) -> None:
    """Each layer's activations are made again in the backward pass instead of being kept.

    Layers of a tower that does not learn keep nothing to begin with.
    """
    layers = [*model.llm.model.layers]
    if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
        layers += model.vision_tower.vision_model.encoder.layers
    for layer in layers:
        # The method is bound on the instance: names and hooks of the module stay as they are.
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def parameter_groups(model: Nvila, recipe: StageRecipe) -> list[dict]:
    """One group per part that learns; every group remembers its peak rate."""
    groups = []
    for part in recipe.learn.parts:
        found = [p for p in model.get_submodule(part).parameters() if p.requires_grad]
        rate = getattr(recipe.learn, part)
        if found:
            groups.append(
                {
                    "params": found,
                    "lr": rate,
                    "peak_lr": rate,
                    "weight_decay": recipe.schedule.weight_decay,
                    "part": part,
                }
            )
    return groups
