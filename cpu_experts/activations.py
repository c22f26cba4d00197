"""Activations: one input that several matrices read, quantised once per kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from cpu_experts.cache import entry
from cpu_experts.layout import row_stride
from cpu_experts.quantise import prepare

FLOAT32 = np.dtype(np.float32)
_PREPARE = types.void(*[types.int64] * 7)


def as_rows(x: np.ndarray, cols: int) -> np.ndarray:
    """x as C-contiguous float32 [T, cols]; ValueError where it has another shape."""
    if x.ndim != 2 or x.shape[1] != cols:
        raise ValueError(f"the input has shape {x.shape}; this weight reads [T, {cols}]")
    return as_array(x, FLOAT32)


def as_array(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x as compiled code reads it: np.require's meaning, without its microseconds."""
    if x.dtype is dtype and x.flags.carray:
        return x
    return np.require(x, dtype=dtype, requirements=("C", "A", "W"))


@cache
def prepared() -> Callable[..., None]:
    """`prepare`, compiled or loaded once."""
    return entry(prepare.py_func, _PREPARE)


class Activations:
    """x float32 [T, cols]; its int8 forms are made when a weight first asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = as_rows(x, x.shape[-1])
        self._forms: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(T, cols)"""
        return self.x.shape[0], self.x.shape[1]

    def table(self, kind: int, terms: int = 1) -> int:
        """The address of T * terms int64 row addresses of x in an activation kind."""
        form = self._forms.get((kind, terms))
        if form is None:
            form = self._forms[kind, terms] = self._make(kind, terms)
        return form[0]

    def _make(self, kind: int, terms: int) -> tuple[int, np.ndarray]:
        n_rows, cols = self.shape
        stride = row_stride(kind, cols)
        memory = np.empty(n_rows * terms * (stride + 8) + 64, dtype=np.uint8)
        rows = (int(memory.ctypes.data) + 63) // 64 * 64
        table = rows + n_rows * terms * stride
        prepared()(kind, int(self.x.ctypes.data), n_rows, cols, rows, table, terms)
        return table, memory
