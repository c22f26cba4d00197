"""Memory for one call at a time, kept per thread and grown when needed: calls allocate nothing."""

from __future__ import annotations

import threading

import numpy as np

from cpu_experts.pool import SCRATCH_BYTES


class Workspace(threading.local):
    """`scratch` is the address of this thread's kernel scratch, `at_least` gives more beside it."""

    def __init__(self) -> None:
        self._scratch, self.scratch = _aligned(SCRATCH_BYTES)
        self._buffer, self._address = _aligned(1 << 16)
        self._size = 1 << 16

    def at_least(self, size: int) -> int:
        """The address of at least `size` bytes, 64-byte aligned; what lay there is lost."""
        if size > self._size:
            self._size = max(size, 2 * self._size)
            self._buffer, self._address = _aligned(self._size)
        return self._address


def _aligned(size: int) -> tuple[np.ndarray, int]:
    memory = np.empty(size + 64, dtype=np.uint8)
    return memory, (int(memory.ctypes.data) + 63) // 64 * 64


WORKSPACE = Workspace()
