# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, told to keep what plain torch on a CPU frees and asks for again."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h. By default it gives blocks of 128 KiB and more back to the system when they are
# freed and takes new pages, all of them zeroed, for the next tensor of the same size.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BLOCK = 32 << 20  # bytes; the most that glibc accepts
MOST_KEPT = 256 << 20  # bytes of free memory at the heap's end before it goes back
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """For the whole process; whether it was done. No result depends on it, only time.

    Another C library, and settings that the user has made, are left alone.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK), (M_TRIM_THRESHOLD, MOST_KEPT))
    return all(mallopt(name, value) == 1 for name, value in settings)
