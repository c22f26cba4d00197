"""The few calls of the CUDA driver that we need, through ctypes: load machine code, launch it.

torch owns contexts, memory and streams; this adds only what it has no function for.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

_STATIC_SHARED = 48 << 10  # more than this must be asked for
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_REGISTERS, _LOCAL_BYTES = 4, 3  # CU_FUNC_ATTRIBUTE_NUM_REGS, _LOCAL_SIZE_BYTES
_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_PENDING = threading.local()


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("value", ctypes.c_uint64 * 8))


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("n_attributes", ctypes.c_uint),
    )


_OVERLAP = _Attribute(_PROGRAMMATIC_SERIALIZATION, (1,))


class GpuError(RuntimeError):
    """The GPU, its driver or the compiler refused something."""


@cache
def _library() -> Any:
    """libcuda, with the types of the functions that we call."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        pointer = ctypes.c_void_p
        library.cuLaunchKernelEx.argtypes = [pointer] * 4
        library.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
        library.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
        library.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        library.cuFuncGetAttribute.argtypes = [pointer, ctypes.c_int, pointer]
        library.cuGetErrorString.argtypes = [ctypes.c_int, pointer]
        return library
    raise GpuError("the NVIDIA driver (libcuda) is not on this machine")


def _check(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(text))
        reason = text.value.decode() if text.value else "unknown error"
        raise GpuError(f"the GPU driver failed to {doing}: {reason} (CUDA error {code})")


def _use_context(device: int) -> None:
    """Make torch's context current in this thread, as it is only where torch has used the GPU."""
    if getattr(_PENDING, "device", None) == device:
        return
    library, context = _library(), ctypes.c_void_p()
    _check(library.cuInit(0), "start")
    _check(library.cuCtxGetCurrent(ctypes.byref(context)), "name its context")
    if not context.value:
        handle = ctypes.c_int()
        _check(library.cuDeviceGet(ctypes.byref(handle), device), "find the GPU")
        _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "open the GPU")
        _check(library.cuCtxSetCurrent(context), "enter the GPU's context")
    _PENDING.device = device


class Function:
    """A kernel in the memory of one GPU. It stays loaded as long as the process lives.

    One that `overlaps` may start before the kernel in front of it has ended (pdl.py).
    """

    def __init__(
        self, cubin: bytes, name: str, shared: int, n_threads: int, overlaps: bool, device: int
    ) -> None:
        _use_context(device)
        library = _library()
        self.name, self._shared, self._n_threads, self._overlaps = name, shared, n_threads, overlaps
        module, self._handle = ctypes.c_void_p(), ctypes.c_void_p()
        _check(library.cuModuleLoadData(ctypes.byref(module), cubin), f"load {name}")
        found = library.cuModuleGetFunction(ctypes.byref(self._handle), module, name.encode())
        _check(found, f"find {name}")
        if shared > _STATIC_SHARED:
            asked = library.cuFuncSetAttribute(self._handle, _MAX_DYNAMIC_SHARED, shared)
            _check(asked, f"give {name} {shared} bytes of shared memory")

    def launch(self, grid: tuple[int, int, int], words: Sequence[int], stream: int) -> None:
        """Enqueue on `stream`; `words` holds the parameters' bits, one 64-bit word for each."""
        n = len(words)
        values = (ctypes.c_uint64 * n)(*words)
        first = ctypes.addressof(values)
        places = (ctypes.c_void_p * n)(*range(first, first + 8 * n, 8))
        overlap = (ctypes.addressof(_OVERLAP), 1) if self._overlaps else (None, 0)
        block = self._n_threads, 1, 1
        how = _Configuration(grid, block, self._shared, stream, *overlap)
        code = _library().cuLaunchKernelEx(ctypes.byref(how), self._handle, places, None)
        if code:
            _check(code, f"launch {self.name} {grid}")

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread, and bytes of it that did not fit into them."""
        value = ctypes.c_int()
        found = []
        for attribute in (_REGISTERS, _LOCAL_BYTES):
            code = _library().cuFuncGetAttribute(ctypes.byref(value), attribute, self._handle)
            _check(code, f"describe {self.name}")
            found.append(value.value)
        return found[0], found[1]


def enter(device: int) -> None:
    """Make the GPU usable in this thread, before a launch; costs nothing the second time."""
    _use_context(device)
