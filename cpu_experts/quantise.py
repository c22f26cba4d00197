"""float32 activations to int8: symmetric, a float32 scale per block of 32 (Q8_32) or 256 (Q8_K)."""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_experts.formats import FLOAT, Q8_32
from cpu_experts.layout import padded, row_stride, scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import load_f32, load_i8, store_f32, store_i8, store_i16, store_i64


@njit(fastmath={"reassoc", "nnan", "nsz"}, error_model="numpy")
def _largest(x, n):
    """The largest magnitude of n float32."""
    largest = np.float32(0.0)
    for i in range(n):
        largest = max(largest, abs(load_f32(x + 4 * i)))
    return largest


@njit(error_model="numpy")
def _quantise_block(source, n, values, scale_place):
    """n float32 at `source` as n int8 and their scale."""
    # A scale below float32's normal range would make its inverse infinite: such a block is zero.
    scale = _largest(source, n) / np.float32(127.0)
    inverse = np.float32(0.0)
    if scale >= np.float32(1e-37):
        inverse = np.float32(1.0) / scale
    else:
        scale = np.float32(0.0)
    store_f32(scale_place, scale)
    for i in range(n):
        store_i8(values + i, np.int32(np.rint(load_f32(source + 4 * i) * inverse)))


@njit(error_model="numpy")
def _store_sums(values, sums16, sums32):
    """The int16 sums of 32 int8 values and of their halves."""
    first, second = np.int32(0), np.int32(0)
    for i in range(16):
        first = np.int32(first + load_i8(values + i))
        second = np.int32(second + load_i8(values + 16 + i))
    store_i16(sums16, first)
    store_i16(sums16 + 2, second)
    store_i16(sums32, np.int32(first + second))


@njit(error_model="numpy")
def _clear(target, n):
    for i in range(n):
        store_i8(target + i, 0)


@njit(error_model="numpy")
def quantise_part(kind, x, start, n, cols, out):
    """n float32 at `x` as columns `start`... (whole blocks) of the row of `cols` at `out`."""
    if kind == FLOAT:
        for i in range(n):
            store_f32(out + 4 * (start + i), load_f32(x + 4 * i))
        return
    block = 32 if kind == Q8_32 else 256
    scales, sums32, sums16 = (
        out + scales_offset(cols),
        out + sums32_offset(cols, block),
        out + sums16_offset(cols, block),
    )
    for b in range(start // block, (start + n) // block):
        source = x + 4 * (b * block - start)
        _quantise_block(source, block, out + b * block, scales + 4 * b)
    end = start + n
    if end == cols and end % 256:
        _clear(out + end, padded(cols) - end)
        _clear(scales + end // block * 4, (padded(cols) - end) // block * 4)
        end = padded(cols)
    for s in range(start // 32, end // 32):
        _store_sums(out + 32 * s, sums16 + 4 * s, sums32 + 2 * s)


@njit(error_model="numpy")
def prepare_rows(kind, x, n_rows, cols, rows, table):
    """Quantise rows into `rows` (or leave floats where they are) and list their addresses."""
    stride = row_stride(kind, cols)
    for t in range(n_rows):
        source = x + 4 * t * cols
        if kind == FLOAT:
            store_i64(table + 8 * t, source)
        else:
            quantise_part(kind, source, 0, cols, cols, rows + t * stride)
            store_i64(table + 8 * t, rows + t * stride)


@njit(error_model="numpy")
def _residual(kind, x, cols, row, out):
    """What quantising left of `cols` float32 at x: x - scale * int8, as float32 at `out`."""
    block = 32 if kind == Q8_32 else 256
    for b in range(cols // block):
        scale = load_f32(row + scales_offset(cols) + 4 * b)
        for i in range(b * block, (b + 1) * block):
            store_f32(out + 4 * i, load_f32(x + 4 * i) - scale * np.float32(load_i8(row + i)))


@njit(error_model="numpy")
def prepare_terms(kind, x, n_rows, cols, rows, table, residual):
    """Quantise each row twice: the row, then what its rounding left. Lists 2 * n_rows addresses.

    Their products with a weight add up to one with activations of about 15 bits. `residual` is
    memory for one float32 row.
    """
    stride = row_stride(kind, cols)
    for t in range(n_rows):
        source, row = x + 4 * t * cols, rows + 2 * t * stride
        prepare_rows(kind, source, 1, cols, row, table + 16 * t)
        _residual(kind, source, cols, row, residual)
        prepare_rows(kind, residual, 1, cols, row + stride, table + 16 * t + 8)
