# SPDX-License-Identifier: Apache-2.0
"""Memory for tensors that are about to be filled."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 << 20
MADV_HUGEPAGE = 14  # of Linux; Python 3.10's mmap does not name it


def empty_on(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised; a large one on a CPU gets huge pages, whose first use costs a third."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    is_large = device.type == "cpu" and tensor.nbytes >= 2 * HUGE_PAGE_BYTES
    if is_large and sys.platform == "linux":
        first = -(-tensor.data_ptr() // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        length = (tensor.data_ptr() + tensor.nbytes - first) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        # An advice: where the system does not take it, nothing changes but the time.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), MADV_HUGEPAGE)
    return tensor
