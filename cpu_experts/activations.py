"""Activations: one input that several matrices read, quantised once per kind."""

from __future__ import annotations

import numpy as np
from numba import types

from cpu_experts.cache import entry
from cpu_experts.layout import row_stride
from cpu_experts.quantise import prepare_rows

FLOAT32 = np.dtype(np.float32)
_PREPARE = types.void(*[types.int64] * 6)
_row_stride = row_stride.py_func


def as_rows(x: np.ndarray, cols: int) -> np.ndarray:
    """x as C-contiguous float32 [T, cols]; ValueError where it has another shape."""
    if x.ndim != 2 or x.shape[1] != cols:
        raise ValueError(f"the input has shape {x.shape}; this weight reads [T, {cols}]")
    if x.dtype is FLOAT32 and x.flags.carray:
        return x
    return np.require(x, dtype=np.float32, requirements=("C", "A", "W"))


class Activations:
    """x float32 [T, cols]; its int8 forms are made when a weight first asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = as_rows(x, x.shape[-1])
        self._forms: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(T, cols)"""
        return self.x.shape[0], self.x.shape[1]

    def table(self, kind: int) -> int:
        """The address of T int64 row addresses of x in an activation kind."""
        form = self._forms.get(kind)
        if form is None:
            form = self._forms[kind] = self._make(kind)
        return form[0]

    def _make(self, kind: int) -> tuple[int, np.ndarray]:
        n_rows, cols = self.shape
        stride = _row_stride(kind, cols)
        memory = np.empty(n_rows * (stride + 8) + 64, dtype=np.uint8)
        rows = (int(memory.ctypes.data) + 63) // 64 * 64
        table = rows + n_rows * stride
        entry(prepare_rows.py_func, _PREPARE)(
            kind, int(self.x.ctypes.data), n_rows, cols, rows, table
        )
        return table, memory
