"""Q4_K: 256 values in 144 bytes: eight sub-blocks of 32 with a 6-bit scale and minimum each.

float16 d, float16 dmin, 12 bytes of packed scales and minima, 128 bytes of nibbles; in each 32 bytes
the low nibbles are one sub-block, the high ones the next. weight = d * scale * q - dmin * minimum.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 256, 144, 32


@njit
def scale_and_minimum(packed, s):
    """The 6-bit scale and minimum of sub-block `s` (0-7), from the 12 bytes at `packed`."""
    if s < 4:
        return load_u8(packed + s) & 63, load_u8(packed + 4 + s) & 63
    both = load_u8(packed + 4 + s)
    scale = (both & 15) | load_u8(packed + s - 4) >> 6 << 4
    return scale, both >> 4 | load_u8(packed + s) >> 6 << 4


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 8 scales and 8 minima."""
    d, dmin = load_f16(block), load_f16(block + 2)
    for s in range(8):
        scale, minimum = scale_and_minimum(block + 4, s)
        store_f32(scales + 4 * s, d * np.float32(scale))
        store_f32(minima + 4 * s, dmin * np.float32(minimum))
        shift = s % 2 * 4
        for i in range(32):
            packed = load_u8(block + 16 + s // 2 * 32 + i)
            store_i8(values + 32 * s + i, packed >> shift & 15)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
