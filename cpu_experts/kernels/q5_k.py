"""Q5_K: Q4_K with a fifth bit: 256 values in 176 bytes.

float16 d, float16 dmin, 12 bytes of packed scales and minima, 32 bytes of high bits (bit s of byte i
belongs to value i of sub-block s), 128 bytes of nibbles. weight = d * scale * q - dmin * minimum.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q4_k import scale_and_minimum
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 256, 176, 32


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
            low = load_u8(block + 48 + s // 2 * 32 + i) >> shift & 15
            store_i8(values + 32 * s + i, low | (load_u8(block + 16 + i) >> s & 1) << 4)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
