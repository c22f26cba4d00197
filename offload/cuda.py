"""The NVIDIA driver through ctypes: what GPUs there are, and how fast they copy.

Two libraries come with every driver: libcuda, which obeys CUDA_VISIBLE_DEVICES and MIG as torch
does, and NVML, which tells what is free without making a context (that would take some of it).
Neither torch nor a CUDA toolkit is needed. Not here: what the numbers mean (offload.gpus).
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_ulonglong, c_void_p

_ON_WINDOWS = sys.platform == "win32"
_CUDA = "nvcuda.dll" if _ON_WINDOWS else "libcuda.so.1"
_NVML = "nvml.dll" if _ON_WINDOWS else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_TEXT = 256
_SECONDS = 0.1  # of copies in one direction; the clocks come up in the first part of it


class NoDriver(Exception):
    """There is no driver that answers; the text says what is known about the reason."""


class CudaError(Exception):
    """The driver refused a call."""


class Cuda:
    """libcuda, initialised. Devices are numbers from 0."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_CUDA)
        except OSError as error:
            raise NoDriver("there is no NVIDIA driver") from error
        try:
            self._call("cuInit", c_int(0))
        except CudaError as error:
            raise NoDriver(f"the NVIDIA driver does not answer: {error}") from error

    def _call(self, name: str, *arguments: object) -> None:
        function: Callable[..., int] = getattr(self._library, name)
        code = function(*arguments)
        if code == 0:
            return
        text = c_char_p()
        self._library.cuGetErrorString(c_int(code), byref(text))
        reason = text.value.decode() if text.value else "unknown"
        raise CudaError(f"{name}: {reason} ({code})")

    def version(self) -> tuple[int, int]:
        """The newest CUDA that this driver runs, such as (12, 8)."""
        number = c_int()
        self._call("cuDriverGetVersion", byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def count(self) -> int:
        """How many devices there are."""
        number = c_int()
        self._call("cuDeviceGetCount", byref(number))
        return number.value

    def name(self, device: int) -> str:
        """The marketing name."""
        return self._text("cuDeviceGetName", device)

    def bus(self, device: int) -> str:
        """The PCI address, which NVML knows too."""
        return self._text("cuDeviceGetPCIBusId", device)

    def total(self, device: int) -> int:
        """Bytes of VRAM that a process can see."""
        nbytes = c_size_t()
        self._call("cuDeviceTotalMem_v2", byref(nbytes), self._handle(device))
        return nbytes.value

    def capability(self, device: int) -> tuple[int, int]:
        """The compute capability, such as (8, 9)."""
        return self._attribute(device, _MAJOR), self._attribute(device, _MINOR)

    @contextmanager
    def context(self, device: int) -> Iterator[None]:
        """The device's primary context, which torch would use too, for the calls inside."""
        handle, context = self._handle(device), c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), handle)
        try:
            self._call("cuCtxPushCurrent_v2", context)
            try:
                yield
            finally:
                self._call("cuCtxPopCurrent_v2", byref(c_void_p()))
        finally:
            self._call("cuDevicePrimaryCtxRelease_v2", handle)

    def free(self) -> int:
        """Bytes of VRAM that are free, the context already taken out. In a context."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def vram_bandwidth(self, nbytes: int) -> float:
        """Bytes/second, read and written, of copies within VRAM. In a context."""
        with self._vram(nbytes) as source, self._vram(nbytes) as target:
            size = c_size_t(nbytes)
            seconds = self._seconds(lambda: self._call("cuMemcpyDtoD_v2", target, source, size))
        return 2 * nbytes / seconds

    def pcie_bandwidth(self, nbytes: int) -> float:
        """Bytes/second of copies from pinned RAM to VRAM. In a context."""
        pinned, size = c_void_p(), c_size_t(nbytes)
        self._call("cuMemAllocHost_v2", byref(pinned), size)
        try:
            with self._vram(nbytes) as target:
                seconds = self._seconds(lambda: self._call("cuMemcpyHtoD_v2", target, pinned, size))
        finally:
            self._call("cuMemFreeHost", pinned)
        return nbytes / seconds

    def _seconds(self, copy: Callable[[], None]) -> float:
        """The least that one of several copies took."""
        began, least = time.perf_counter(), float("inf")
        while (now := time.perf_counter()) - began < _SECONDS:
            copy()
            self._call("cuCtxSynchronize")
            least = min(least, time.perf_counter() - now)
        return least

    @contextmanager
    def _vram(self, nbytes: int) -> Iterator[c_uint64]:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(nbytes))
        try:
            yield address
        finally:
            self._call("cuMemFree_v2", address)

    def _handle(self, device: int) -> c_int:
        handle = c_int()
        self._call("cuDeviceGet", byref(handle), c_int(device))
        return handle

    def _attribute(self, device: int, which: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), c_int(which), self._handle(device))
        return value.value

    def _text(self, function: str, device: int) -> str:
        text = ctypes.create_string_buffer(_TEXT)
        self._call(function, text, c_int(_TEXT), self._handle(device))
        return text.value.decode()


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Nvml:
    """NVML; where it is missing or refuses, the answers are empty. A context manager."""

    def __enter__(self) -> Nvml:
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL(_NVML)
        except OSError:
            self._library = None
        if not self._works("nvmlInit_v2"):
            self._library = None
        return self

    def __exit__(self, *_: object) -> None:
        self._works("nvmlShutdown")

    def _works(self, name: str, *arguments: object) -> bool:
        if self._library is None:
            return False
        function: Callable[..., int] = getattr(self._library, name)
        return function(*arguments) == 0

    def driver(self) -> str:
        """The driver's version, such as "580.65.06"."""
        text = ctypes.create_string_buffer(_TEXT)
        known = self._works("nvmlSystemGetDriverVersion", text, c_int(_TEXT))
        return text.value.decode() if known else ""

    def memory(self, bus: str) -> tuple[int, int] | None:
        """(total, free) bytes of the board at a PCI address, reserved ones in neither free."""
        board, memory = c_void_p(), _Memory()
        found = self._works("nvmlDeviceGetHandleByPciBusId_v2", bus.encode(), byref(board))
        if not found or not self._works("nvmlDeviceGetMemoryInfo", board, byref(memory)):
            return None
        return int(memory.total), int(memory.free)
