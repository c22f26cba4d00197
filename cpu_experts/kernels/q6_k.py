"""Q6_K: 256 values in 210 bytes: sixteen sub-blocks of 16 with an int8 scale each.

128 bytes of low nibbles, 64 bytes of high bit pairs, int8 scales[16], float16 d. Each half of 128
values takes 64 + 32 bytes: values 0-31 and 32-63 are the low nibbles of the two runs of 32 bytes,
64-95 and 96-127 the high ones, and their bit pairs are bits 0-1, 2-3, 4-5, 6-7 of the 32 bytes.
weight = d * scale * (q - 32).
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_i8, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 256, 210, 16


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 16 scales and minima of 0."""
    d = load_f16(block + 208)
    for s in range(16):
        store_f32(scales + 4 * s, d * np.float32(load_i8(block + 192 + s)))
        store_f32(minima + 4 * s, 0.0)
    for part in range(8):
        half, quarter = part // 4, part % 4
        for i in range(32):
            low = load_u8(block + half * 64 + quarter % 2 * 32 + i) >> (quarter // 2 * 4) & 15
            high = load_u8(block + 128 + half * 32 + i) >> (quarter * 2) & 3
            store_i8(values + part * 32 + i, (low | high << 4) - 32)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
