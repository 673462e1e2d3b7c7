# SPDX-License-Identifier: Apache-2.0
"""Chooses how MuJoCo draws without a display; imported before MuJoCo by everything that draws."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from nvila_ros.errors import SystemLibraryError

_BACKENDS = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_INSTALL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"


def choose_gl_backend() -> str:
    """Set MUJOCO_GL where it is unset: EGL if its library loads, else OSMesa."""
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if chosen or not sys.platform.startswith("linux"):
        return chosen
    for name, library in _BACKENDS.items():
        if _loads(library):
            os.environ["MUJOCO_GL"] = name
            return name
    return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


choose_gl_backend()

_contexts: dict[int, Any] = {}  # process id -> context: a forked child never uses its parent's


def current_context() -> Any:
    """The OpenGL context of this process, made current in the calling thread."""
    process = os.getpid()
    if process not in _contexts:
        _contexts[process] = _new_context()
    _contexts[process].make_current()
    return _contexts[process]


def _new_context() -> Any:
    backend = choose_gl_backend()
    if not backend:
        raise SystemLibraryError(
            f"neither libEGL nor libOSMesa was found, so nothing can be drawn; run: {_INSTALL}"
        )
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        # The size is that of an unused surface: frames go to offscreen buffers.
        return GLContext(64, 64)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise SystemLibraryError(
            f"MUJOCO_GL={backend} cannot open an OpenGL context ({error}); run: {_INSTALL}"
        ) from error
