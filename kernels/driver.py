# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver through ctypes: load machine code, launch it on torch's stream and context."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import KernelError

# CUlaunchAttributeID
_COOPERATIVE, _CLUSTER_DIMENSION, _PROGRAMMATIC = 2, 4, 6
# CUfunction_attribute
_MAX_DYNAMIC_SHARED_BYTES, _SHARED_CARVEOUT = 8, 9
# CUdevice_attribute
MULTIPROCESSORS, MULTIPROCESSOR_SHARED_BYTES, BLOCK_SHARED_BYTES = 16, 81, 97
DEFAULT_SHARED_BYTES = 48 * 1024  # more has to be asked for, once per kernel
# CUtensorMapDataType by torch's type
_TENSOR_MAP_TYPES = {
    torch.uint8: 0,
    torch.int8: 0,
    torch.int32: 3,
    torch.float16: 6,
    torch.float32: 7,
    torch.bfloat16: 9,
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes -> CUtensorMapSwizzle
_L2_PROMOTION_256 = 3


class _AttributeValue(ctypes.Union):
    _fields_ = (("words", ctypes.c_uint * 16), ("integer", ctypes.c_int))


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", _AttributeValue))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class TensorMap(ctypes.Structure):
    """A CUtensorMap: passed by value to a `const __grid_constant__ CUtensorMap` parameter."""

    _fields_ = (("words", ctypes.c_uint64 * 16),)
    tensor: Tensor  # kept alive as long as the map


@lru_cache(maxsize=1)
def cuda() -> ctypes.CDLL:
    """The driver's library, initialized."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise KernelError(f"NVIDIA's driver is missing ({name}): install it") from error
    if not hasattr(library, "cuLaunchKernelEx"):
        raise KernelError("NVIDIA's driver is too old: version 525 (CUDA 12) or newer is needed")
    status = library.cuInit(0)
    if status:
        raise KernelError(
            f"NVIDIA's driver does not start: cuInit gave error {status}, 0 is expected; "
            "see whether nvidia-smi lists the GPU and CUDA_VISIBLE_DEVICES names it"
        )
    return library


def check(status: int, what: str) -> None:
    """Raise KernelError with the driver's words unless `status` is success."""
    if status:
        text = ctypes.c_char_p()
        cuda().cuGetErrorString(status, ctypes.byref(text))
        reason = text.value.decode() if text.value else "unknown error"
        raise KernelError(f"{what}: CUDA error {status}, {reason}")


def device_attribute(attribute: int, device: int) -> int:
    """One of the numbers above, of the device that torch calls `device`."""
    handle, value = ctypes.c_int(), ctypes.c_int()
    check(cuda().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    status = cuda().cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    check(status, f"device attribute {attribute}")
    return value.value


_context = threading.local()


def use_context(device: int) -> None:
    """Make torch's (the primary) context of `device` current in this thread."""
    if getattr(_context, "device", None) == device and _current_context():
        return
    torch.cuda.init()
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    check(cuda().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    check(cuda().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "context")
    check(cuda().cuCtxSetCurrent(context), "cuCtxSetCurrent")
    _context.device = device


def _current_context() -> bool:
    context = ctypes.c_void_p()
    cuda().cuCtxGetCurrent(ctypes.byref(context))
    return bool(context.value)


class Module:
    """Loaded machine code; lives as long as the process (a captured graph may point into it)."""

    def __init__(self, code: bytes, device: int) -> None:
        self.device = device
        self._handle = ctypes.c_void_p()
        self._kernels: dict[str, Kernel] = {}
        use_context(device)
        check(cuda().cuModuleLoadData(ctypes.byref(self._handle), code), "cuModuleLoadData")

    def kernel(self, name: str) -> Kernel:
        """A function by its C name; raises KernelError where the source has none such."""
        found = self._kernels.get(name)
        if found is None:
            function = ctypes.c_void_p()
            status = cuda().cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode())
            check(status, f"kernel {name}")
            found = self._kernels.setdefault(name, Kernel(name, function, self.device))
        return found


class Kernel:
    """One `extern "C" __global__` function."""

    def __init__(self, name: str, function: ctypes.c_void_p, device: int) -> None:
        self.name = name
        self._function = function
        self._device = device
        self._shared_limit = DEFAULT_SHARED_BYTES

    def allow_shared(self, num_bytes: int) -> None:
        """Raise the limit of dynamic shared memory; `launch` does it by itself."""
        if num_bytes > self._shared_limit:
            use_context(self._device)
            status = cuda().cuFuncSetAttribute(
                self._function, _MAX_DYNAMIC_SHARED_BYTES, ctypes.c_int(num_bytes)
            )
            check(status, f"{self.name} with {num_bytes} bytes of shared memory")
            # All of L1: a multiprocessor has to drain before it divides its memory otherwise.
            cuda().cuFuncSetAttribute(self._function, _SHARED_CARVEOUT, ctypes.c_int(100))
            self._shared_limit = num_bytes

    def max_blocks(self, num_threads: int, shared_bytes: int) -> int:
        """How many blocks of that size fit one multiprocessor at a time."""
        self.allow_shared(shared_bytes)
        use_context(self._device)
        count = ctypes.c_int()
        status = cuda().cuOccupancyMaxActiveBlocksPerMultiprocessor(
            ctypes.byref(count), self._function, num_threads, ctypes.c_size_t(shared_bytes)
        )
        check(status, f"{self.name}: occupancy")
        return count.value

    def max_clusters(self, cluster: int, num_threads: int, shared_bytes: int) -> int:
        """How many clusters of that many blocks (its `__cluster_dims__`) run at a time."""
        self.allow_shared(shared_bytes)
        use_context(self._device)
        count = ctypes.c_int()
        grid = (ctypes.c_uint * 3)(cluster, 1, 1)  # whole clusters, else CUDA refuses (error 912)
        threads = (ctypes.c_uint * 3)(num_threads, 1, 1)
        config = _LaunchConfig(grid, threads, shared_bytes, None, None, 0)
        status = cuda().cuOccupancyMaxActiveClusters(
            ctypes.byref(count), self._function, ctypes.byref(config)
        )
        check(status, f"{self.name}: clusters")
        return count.value

    def launch(
        self,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_bytes: int = 0,
        programmatic: bool = False,
        cooperative: bool = False,
        cluster: Sequence[int] | None = None,
        stream: int | None = None,
    ) -> None:
        """Queue one launch; works under graph capture.

        args: tensors pass as pointers (None as null), int as int32, float as float32, ctypes
        values and `TensorMap`s as they are.
        programmatic: may start before the kernel ahead of it ends (its code waits by itself).
        stream: a raw handle; torch's current stream by default.
        """
        use_context(self._device)
        self.allow_shared(shared_bytes)
        if stream is None:
            stream = torch.cuda.current_stream(self._device).cuda_stream
        attributes = _attributes(programmatic, cooperative, cluster)
        config = _LaunchConfig(
            (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
            (ctypes.c_uint * 3)(*block, *(1,) * (3 - len(block))),
            shared_bytes,
            stream,
            attributes,
            len(attributes),
        )
        values = [_value(argument) for argument in args]
        pointers = (ctypes.c_void_p * len(values))(
            *[ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
        )
        status = cuda().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None)
        if status:
            check(status, f"launch of {self.name}, grid {tuple(grid)}, block {tuple(block)}")


def _attributes(
    programmatic: bool, cooperative: bool, cluster: Sequence[int] | None
) -> ctypes.Array[_Attribute]:
    wanted: list[tuple[int, Sequence[int]]] = []
    if programmatic:
        wanted.append((_PROGRAMMATIC, (1,)))
    if cooperative:
        wanted.append((_COOPERATIVE, (1,)))
    if cluster is not None:
        wanted.append((_CLUSTER_DIMENSION, (*cluster, *(1,) * (3 - len(cluster)))))
    array = (_Attribute * len(wanted))()
    for attribute, (number, words) in zip(array, wanted, strict=True):
        attribute.id = number
        for index, word in enumerate(words):
            attribute.value.words[index] = word
    return array


def _value(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return argument


def tensor_map(tensor: Tensor, box: Sequence[int], swizzle: int = 0) -> TensorMap:
    """A map for the bulk copy engine (sm_90 on): `tensor` in tiles of `box`, both outermost first.

    The last dimension is contiguous, other strides are multiples of 16 bytes; `swizzle` is 0, 32,
    64 or 128 bytes. Reads outside the tensor give zeros.
    """
    rank, size = tensor.dim(), tensor.element_size()
    assert len(box) == rank and tensor.stride(-1) == 1, (box, tensor.shape, tensor.stride())
    dims = (ctypes.c_uint64 * rank)(*reversed(tensor.shape))
    strides = (ctypes.c_uint64 * rank)(*[step * size for step in reversed(tensor.stride()[:-1])])
    tile = (ctypes.c_uint32 * rank)(*reversed(box))
    steps = (ctypes.c_uint32 * rank)(*(1,) * rank)
    room = ctypes.create_string_buffer(128 + 64)
    address = (ctypes.addressof(room) + 63) // 64 * 64  # the driver writes to 64-byte bounds
    status = cuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        _TENSOR_MAP_TYPES[tensor.dtype],
        rank,
        ctypes.c_void_p(tensor.data_ptr()),
        dims,
        strides,
        tile,
        steps,
        0,
        _SWIZZLES[swizzle],
        _L2_PROMOTION_256,
        0,
    )
    check(status, f"tensor map of {tuple(tensor.shape)} in boxes {tuple(box)}")
    result = TensorMap.from_buffer_copy(ctypes.string_at(address, 128))
    result.tensor = tensor
    return result
