# SPDX-License-Identifier: Apache-2.0
"""Tensors that may be spread over ranks (DTensors of FSDP2), or be plain ones."""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; every rank has to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
