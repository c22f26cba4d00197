"""Q5_1: 32 values in 24 bytes: float16 d, float16 m, 32 high bits, 16 bytes of low nibbles.

weight = d * q + m; value i has bit i of the high word.
"""

from __future__ import annotations

from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.memory import load_f16, load_i32, load_u8, store_f32, store_i8

BLOCK, BYTES, SUB = 32, 24, 32


@register_jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and one minimum (-m)."""
    store_f32(scales, load_f16(block))
    store_f32(minima, -load_f16(block + 2))
    high = load_i32(block + 4)
    for i in range(16):
        packed = load_u8(block + 8 + i)
        store_i8(values + i, (packed & 15) | (high >> i & 1) << 4)
        store_i8(values + 16 + i, packed >> 4 | (high >> (i + 16) & 1) << 4)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    dequantise(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, out, out_stride, scratch)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_quantised(unpack, BLOCK, BYTES, SUB, w, stride, row0, n_rows, cols, acts, n_tokens, out,
                   out_stride, scratch)
