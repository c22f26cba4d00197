"""FP8_E4M3: DeepSeek's own weights: one byte a value, a float32 scale per 128 x 128 tile.

The byte is sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7F and 0xFF are NaN, there is no
infinity. weight = scale[row / 128, col / 128] * value. `aux` is the address of the scales.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import jitable
from cpu_experts.kernels.floats import rows_tiled
from cpu_experts.kernels.portable import rows_float
from cpu_experts.memory import load_f32, load_u8, store_f32
from cpu_experts.vectors import widen_e4m3


def _value(byte: int) -> float:
    """What an e4m3 byte stands for."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size


VALUES = np.array([_value(byte) for byte in range(256)], dtype=np.float32)


@jitable
def unpack(w, stride, row, start, n, cols, aux, target):
    """Columns `start` to `start + n` of a row as float32 at `target`."""
    source = w + row * stride + start
    scales = aux + 4 * (row // 128 * ((cols + 127) // 128))
    for i in range(n):
        scale = load_f32(scales + 4 * ((start + i) // 128))
        store_f32(target + 4 * i, VALUES[load_u8(source + i)] * scale)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    for r in range(n_rows):
        unpack(w, stride, row0 + r, 0, cols, cols, aux, out + r * out_stride)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_tiled(
        widen_e4m3,
        unpack,
        w,
        stride,
        row0,
        n_rows,
        cols,
        aux,
        acts,
        n_tokens,
        out,
        out_stride,
        scratch,
    )
