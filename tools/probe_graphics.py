# SPDX-License-Identifier: Apache-2.0
"""Says whether this machine can draw without a screen: exit code 0 when EGL or OSMesa works.

Run in a process of its own (a broken driver may crash it), with nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_void_p

EGL_PLATFORM_DEVICE = 0x313F
OSMESA_RGBA = 0x1908
MAX_DEVICES = 16


def missing_library(*names: str) -> str | None:
    """The first name when none of the alternatives can be loaded, else None."""
    for name in names:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return None
    return names[0]


def egl_problem() -> str | None:
    """None when an EGL device opens (a GPU's, or Mesa's software one), else what is missing."""
    for alternatives in (("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1")):
        missing = missing_library(*alternatives)
        if missing:
            return f"{missing} is missing"
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = c_void_p
    egl.eglGetProcAddress.argtypes = [c_char_p]
    egl.eglInitialize.argtypes = [c_void_p, POINTER(c_int), POINTER(c_int)]
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    open_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not open_address:
        return "EGL has no device extension"
    query = ctypes.CFUNCTYPE(c_int, c_int, POINTER(c_void_p), POINTER(c_int))(query_address)
    open_display = ctypes.CFUNCTYPE(c_void_p, c_int, c_void_p, c_void_p)(open_address)
    devices = (c_void_p * MAX_DEVICES)()
    count = c_int()
    if not query(MAX_DEVICES, devices, byref(count)) or count.value == 0:
        return "EGL finds no device (Mesa's drivers are missing)"
    for device in devices[: count.value]:
        display = open_display(EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(display, byref(c_int()), byref(c_int())):
            return None
    return "no EGL device can be opened (Mesa's drivers are missing)"


def osmesa_problem() -> str | None:
    """None when OSMesa makes a context, else what is missing."""
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            osmesa = ctypes.CDLL(name)
        except OSError:
            continue
        osmesa.OSMesaCreateContext.restype = c_void_p
        osmesa.OSMesaCreateContext.argtypes = [c_int, c_void_p]
        return None if osmesa.OSMesaCreateContext(OSMESA_RGBA, None) else "OSMesa does not start"
    return "libOSMesa is missing"


def main() -> int:
    """Print the problem of the wanted back end ($MUJOCO_GL, egl by default), if there is one."""
    wanted = os.environ.get("MUJOCO_GL", "egl").lower()
    if wanted == "glfw":
        return 0
    problem = osmesa_problem() if wanted == "osmesa" else egl_problem()
    if problem:
        print(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
