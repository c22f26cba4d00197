"""Activations: one input that several matrices read, quantised once per kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from cpu_experts.bf16_products import Tiles
from cpu_experts.cache import c_function, entry
from cpu_experts.layout import row_stride
from cpu_experts.pool import ITEM, pool_address
from cpu_experts.prepare import JOB_BYTES, prepare_item, prepare_many
from cpu_experts.workspace import WORKSPACE

FLOAT32 = np.dtype(np.float32)
_PREPARE = types.void(*[types.int64] * 11)


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
    """`prepare_many`, compiled or loaded once."""
    return entry(prepare_many.py_func, _PREPARE)


@cache
def preparing() -> int:
    """The address of `prepare_item`, compiled or loaded once."""
    return c_function(prepare_item, ITEM)


class Activations:
    """x float32 [T, cols]; its int8 and bf16 forms are made when a weight first asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = as_rows(x, x.shape[-1])
        self._forms: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        self._tiles: Tiles | None = None

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

    def tiles(self) -> Tiles:
        """The rows as bf16 tiles."""
        if self._tiles is None:
            self._tiles = Tiles.of(self.x)
        return self._tiles

    def _make(self, kind: int, terms: int) -> tuple[int, np.ndarray]:
        n_rows, cols = self.shape
        stride = row_stride(kind, cols)
        memory = np.empty(n_rows * terms * (stride + 8) + JOB_BYTES + 64, dtype=np.uint8)
        rows = (int(memory.ctypes.data) + 63) // 64 * 64
        table = rows + n_rows * terms * stride
        where = (kind, int(self.x.ctypes.data), n_rows, cols, rows, table, terms)
        job = table + 8 * n_rows * terms
        prepared()(*where, job, WORKSPACE.scratch, pool_address(), preparing())
        return table, memory
