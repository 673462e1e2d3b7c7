# SPDX-License-Identifier: Apache-2.0
"""The tower's queries, keys and values by one product while training; parameters stay apart.

Three products of 1,152 outputs each leave a GPU's multiprocessors partly idle, most of all in the
gradients by weights (81 tiles of 128 x 128 for 132 multiprocessors). The weights are joined anew in
every pass, 8 MB a layer, so checkpoints, optimizers and sharding see three parameters as before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.models.vision import VisionAttention, VisionTower


class MergedVisionAttention(VisionAttention):
    """As its parent, with one product for query, key and value."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, P, D) -> (F, P, D)."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([each.weight for each in projections])  # (3 D, D)
        bias = torch.cat([each.bias for each in projections])
        joined = F.linear(hidden, weight, bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (each.transpose(1, 2) for each in joined.unbind(-3))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (F, heads, P, head width)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def merge_products(tower: VisionTower) -> int:
    """Changes every layer whose three linears are plain, in place; returns how many.

    Call it after adapters and float8 linears are in: layers that have them stay as they are.
    """
    count = 0
    for layer in tower.vision_model.encoder.layers:
        own = layer.self_attn
        if type(own) is VisionAttention and all(
            type(each) is nn.Linear for each in (own.q_proj, own.k_proj, own.v_proj)
        ):
            own.__class__ = MergedVisionAttention
            count += 1
    return count
