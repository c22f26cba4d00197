"""FP8_E4M3: DeepSeek's own weights: one byte a value, a float32 scale per 128 x 128 tile.

The byte is sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7F and 0xFF are NaN, there is no
infinity. weight = scale[row / 128, col / 128] * value. `aux` is the address of the scales.
"""

from __future__ import annotations

from numba import njit
from numba.extending import register_jitable

from cpu_experts.kernels.portable import rows_float
from cpu_experts.memory import bits_to_f32, float_bits, load_f32, load_u8, store_f32


@njit
def e4m3(byte):
    """The float32 value of an e4m3 byte."""
    # Shifted in place, the byte is the float32 of value / 2**120, subnormals included.
    value = bits_to_f32((byte & 0x7F) << 20) * bits_to_f32(0x7B800000)
    bits = float_bits(value)
    if (byte & 0x7F) == 0x7F:
        bits = 0x7FC00000
    return bits_to_f32(bits | ((byte & 0x80) << 24))


@register_jitable
def unpack(w, stride, row, start, n, cols, aux, target):
    """Columns `start` to `start + n` of a row as float32 at `target`."""
    source = w + row * stride + start
    scales = aux + 4 * (row // 128 * ((cols + 127) // 128))
    for i in range(n):
        scale = load_f32(scales + 4 * ((start + i) // 128))
        store_f32(target + 4 * i, e4m3(load_u8(source + i)) * scale)


def dequant(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """Rows as float32 at `out`."""
    for r in range(n_rows):
        unpack(w, stride, row0 + r, 0, cols, cols, aux, out + r * out_stride)


def rows(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, portable."""
    rows_float(unpack, w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch)
