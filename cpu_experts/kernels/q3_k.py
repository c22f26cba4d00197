"""Q3_K: 256 values in 110 bytes: sixteen sub-blocks of 16 with a 6-bit signed scale each.

32 bytes of high bits, 64 bytes of bit pairs (placed as in Q2_K), 12 bytes of packed scales, float16 d.
Bit p of high byte i belongs to value i of the p-th 32 values; where it is clear, 4 is taken off.
weight = d * (scale - 32) * q.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 256, 110, 16


@njit
def scale_of(packed, s):
    """The scale of sub-block `s` (0-15), -32 to 31, from the 12 bytes at `packed`."""
    low = load_u8(packed + s % 8) >> (s // 8 * 4) & 15
    high = load_u8(packed + 8 + s % 4) >> (s // 4 * 2) & 3
    return (low | high << 4) - 32


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 16 scales and minima of 0."""
    d = load_f16(block + 108)
    for s in range(16):
        store_f32(scales + 4 * s, d * np.float32(scale_of(block + 96, s)))
        store_f32(minima + 4 * s, 0.0)
    for part in range(8):
        for i in range(32):
            low = load_u8(block + 32 + part // 4 * 32 + i) >> (part % 4 * 2) & 3
            high = load_u8(block + i) >> part & 1
            store_i8(values + part * 32 + i, low - 4 + 4 * high)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
