"""Q2_K: 256 values in 84 bytes: sixteen sub-blocks of 16 with a 4-bit scale and minimum each.

scales[16] (scale low nibble, minimum high), 64 bytes of bit pairs, float16 d, float16 dmin. In each 32
bytes bits 0-1 are 32 values in a row, bits 2-3 the next 32, and so on.
weight = d * scale * q - dmin * minimum.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 256, 84, 16


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 16 scales and 16 minima."""
    d, dmin = load_f16(block + 80), load_f16(block + 82)
    for s in range(16):
        packed = load_u8(block + s)
        store_f32(scales + 4 * s, d * np.float32(packed & 15))
        store_f32(minima + 4 * s, dmin * np.float32(packed >> 4))
    for part in range(8):
        for i in range(32):
            packed = load_u8(block + 16 + part // 4 * 32 + i)
            store_i8(values + part * 32 + i, packed >> (part % 4 * 2) & 3)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
