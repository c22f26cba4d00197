"""QuantTensor: a weight matrix, or a stack of them, in the bytes of its file."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cpu_experts.cpu import tier
from cpu_experts.formats import FORMATS, QuantFormat, UnsupportedFormat
from cpu_experts.kernels.registry import DEQUANT, ROWS, TILES, kernel_address
from cpu_experts.layout import row_stride

SCALE_TILE = 128  # FP8: one scale per 128 x 128 weights
# Fields of the descriptor that compiled code reads, as int64 indices.
ROWS_KERNEL, TILES_KERNEL, KIND, COUNT, N_ROWS, COLS, STRIDE, BASES, AUX = range(9)

_KERNEL_TYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11)


class BadTensor(ValueError):
    """Bytes, shape and format of a tensor do not fit together."""


def _rows_per_part(shape: tuple[int, ...], n_parts: int) -> int:
    """1 matrix per part, or all of the stack in one part."""
    count = shape[0] if len(shape) == 3 else 1
    if n_parts not in (1, count):
        raise BadTensor(f"a stack of {count} has {n_parts} parts; it needs 1 or {count}")
    return count // n_parts


class QuantTensor:
    """Weights of `shape` (rows, cols) or (n, rows, cols), never copied and never expanded.

    `parts` holds uint8 arrays: one for all, or one per matrix of the stack; C-contiguous, read-only
    and memory-mapped ones too, at any alignment. FP8_E4M3 needs `scales`: per part a float32 array
    [ceil(rows / 128), ceil(cols / 128)], or for one part that holds a stack [n, ...]. Raises
    UnsupportedFormat for an unknown format name, BadTensor where sizes do not fit.
    """

    def __init__(
        self,
        weights: str | QuantFormat,
        shape: tuple[int, ...],
        parts: tuple[np.ndarray, ...],
        scales: tuple[np.ndarray, ...] = (),
    ) -> None:
        name = weights if isinstance(weights, str) else weights.name
        if name not in FORMATS:
            raise UnsupportedFormat(f"no kernel for weight format {name}")
        self.format = FORMATS[name]
        self.shape = tuple(int(n) for n in shape)
        if len(self.shape) not in (2, 3) or min(self.shape) < 1:
            raise BadTensor(f"a weight's shape is (rows, cols) or (n, rows, cols), not {shape}")
        self.count = self.shape[0] if len(self.shape) == 3 else 1
        self.rows, self.cols = self.shape[-2:]
        self.parts = tuple(np.asarray(part).reshape(-1).view(np.uint8) for part in parts)
        self.row_bytes = self.format.row_bytes(self.cols)
        per_part = _rows_per_part(self.shape, len(self.parts))
        for part in self.parts:
            if part.nbytes != per_part * self.rows * self.row_bytes:
                wanted = per_part * self.rows * self.row_bytes
                raise BadTensor(f"{name} {self.shape} needs {wanted} bytes, not {part.nbytes}")
        self.activation_stride = row_stride(self.format.activation, self.cols)
        self.scales = tuple(np.ascontiguousarray(s, dtype=np.float32) for s in scales)
        self._bases = _addresses(self.parts, per_part, self.rows * self.row_bytes)
        self._aux = self._scale_addresses(per_part)

    def _scale_addresses(self, per_part: int) -> np.ndarray:
        if self.format.name != "FP8_E4M3":
            if self.scales:
                raise BadTensor(f"{self.format.name} has no separate scales")
            return np.zeros(self.count, dtype=np.int64)
        tiles = -(-self.rows // SCALE_TILE) * -(-self.cols // SCALE_TILE)
        if len(self.scales) != len(self.parts) or any(
            s.size != per_part * tiles for s in self.scales
        ):
            raise BadTensor(f"FP8_E4M3 {self.shape} needs {tiles} scales for each matrix")
        return _addresses(self.scales, per_part, tiles * 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, scales included."""
        return sum(array.nbytes for array in self.parts + self.scales)

    @cached_property
    def descriptor(self) -> np.ndarray:
        """int64 fields for compiled code; making it compiles the format's kernels for this tier."""
        isa = tier()
        many = ROWS if self.cols % 256 else TILES  # tiles are made of whole superblocks
        return np.array(
            [
                kernel_address(self.format, ROWS, isa),
                kernel_address(self.format, many, isa),
                self.format.activation,
                self.count,
                self.rows,
                self.cols,
                self.row_bytes,
                self._bases.ctypes.data,
                self._aux.ctypes.data,
            ],
            dtype=np.int64,
        )

    @cached_property
    def address(self) -> int:
        """The address of `descriptor`."""
        return int(self.descriptor.ctypes.data)

    def dequantize(self, index: int | None = None) -> np.ndarray:
        """float32 of `shape`, equal to gguf-py's; with `index` one matrix (rows, cols) alone."""
        if index is not None and not 0 <= index < self.count:
            raise IndexError(f"matrix {index} of a stack of {self.count}")
        wanted = range(self.count) if index is None else [index]
        out = np.empty((len(wanted), self.rows, self.cols), dtype=np.float32)
        kernel, scratch = self._dequant
        for place, i in enumerate(wanted):
            base, aux, target = int(self._bases[i]), int(self._aux[i]), out[place].ctypes.data
            where = (base, self.row_bytes, 0, self.rows, self.cols, aux)
            kernel(*where, 0, 0, target, self.cols * 4, scratch.ctypes.data)
        return out.reshape(self.shape if index is None else self.shape[-2:])

    @cached_property
    def _dequant(self) -> Any:
        """The format's dequantising kernel as a ctypes function, and memory for it."""
        kernel = _KERNEL_TYPE(kernel_address(self.format, DEQUANT, tier()))
        return kernel, np.empty(1 << 16, dtype=np.uint8)

    def dequantize_rows(self, rows: Sequence[int]) -> np.ndarray:
        """The rows of a matrix (rows, cols) with these numbers: float32 [len(rows), cols]."""
        kernel, scratch = self._dequant
        out = np.empty((len(rows), self.cols), dtype=np.float32)
        base, aux, target = int(self._bases[0]), int(self._aux[0]), out.ctypes.data
        if rows and not 0 <= min(rows) <= max(rows) < self.rows:
            raise IndexError(f"{self} has no row {max(rows)}")
        for i, row in enumerate(rows):
            where = (base, self.row_bytes, row, 1, self.cols, aux)
            kernel(*where, 0, 0, target + 4 * i * self.cols, 0, scratch.ctypes.data)
        return out

    def __repr__(self) -> str:
        return f"QuantTensor({self.format.name}, {self.shape})"


def _addresses(arrays: tuple[np.ndarray, ...], per_array: int, step: int) -> np.ndarray:
    """int64 addresses of all matrices: `per_array` of them, `step` bytes apart, in each array."""
    offsets = np.arange(per_array, dtype=np.int64) * step
    return np.concatenate([array.ctypes.data + offsets for array in arrays])
