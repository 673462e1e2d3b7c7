# SPDX-License-Identifier: Apache-2.0
"""Which parameter is updated by what: Muon for the hidden matrices, AdamW for the rest."""

from __future__ import annotations

import math

import torch
from torch import nn

from nvila_ros.training.muon import BatchedMuon

NO_MATRIX = (
    "embed_tokens",
    "position_embedding",
    "patch_embedding",
    "category",
    "colour",
    "geometry",
    "sighting",
    "clause",
)


def make_optimizers(
    modules: list[nn.Module], matrix_lr: float, other_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """One Muon over all hidden matrices, one AdamW over embeddings, norms, biases and heads.

    Muon's step is scaled to AdamW's root mean square, so both take learning rates of one scale.
    """
    matrices, decayed, others = [], [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and not any(part in name for part in NO_MATRIX):
                matrices.append(parameter)
            elif parameter.ndim >= 2:
                decayed.append(parameter)
            else:
                others.append(parameter)
    fused = matrices[0].is_cuda
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=other_lr,
        betas=(0.9, 0.98),
        fused=fused,
    )
    muon = BatchedMuon(matrices, lr=matrix_lr, momentum=0.95, weight_decay=weight_decay)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scales every group's peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def warmup_stable_decay(progress: float, warmup: float = 0.03, decay: float = 0.3) -> float:
    """Learning-rate factor over progress in [0, 1]: linear rise, flat, then a cosine fall to zero.

    The flat part can be resumed in a later session with another length; only the fall is final.
    """
    if progress < warmup:
        return progress / warmup
    if progress < 1.0 - decay:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - 1.0 + decay) / decay)))
