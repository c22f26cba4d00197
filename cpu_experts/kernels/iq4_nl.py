"""IQ4_NL: 32 values in 18 bytes: float16 d, 16 bytes of 4-bit codes into a table of 16.

Low nibbles are values 0-15, high ones 16-31; weight = d * CODEBOOK[code].
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 32, 18, 32


# The 16 values of the non-linear code, as the format's authors fixed them.
CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and a minimum of 0."""
    store_f32(scales, load_f16(block))
    store_f32(minima, 0.0)
    for i in range(16):
        packed = load_u8(block + 2 + i)
        store_i8(values + i, CODEBOOK[packed & 15])
        store_i8(values + 16 + i, CODEBOOK[packed >> 4])


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
