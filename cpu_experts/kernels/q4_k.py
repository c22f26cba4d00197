"""Q4_K: 256 values in 144 bytes: eight sub-blocks of 32 with a 6-bit scale and minimum each.

float16 d, float16 dmin, 12 bytes of packed scales and minima, 128 bytes of nibbles; in each 32
bytes the low nibbles are one sub-block, the high ones the next. weight = d * scale * q - dmin *
minimum.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.vnni import rows_integer
from cpu_experts.memory import load_f16, load_i32, load_i64, load_u8, store_f32, store_i8
from cpu_experts.vectors import (
    bytes_constant,
    load,
    load_twice256,
    look_up_bytes,
    low_half,
    mask_bytes,
    shift_right16,
    splat_8_bytes,
    store,
)
from cpu_experts.vectors import (
    load_f16 as load_half,
)

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
    rows_quantised(
        unpack,
        BLOCK,
        BYTES,
        SUB,
        w,
        stride,
        row0,
        n_rows,
        cols,
        acts,
        n_tokens,
        out,
        out_stride,
        scratch,
    )


# The avx512_vnni tier.
_NIBBLES = shift_right16(0, 0, 4, 4)  # the same 32 bytes twice: low nibbles, then high ones
_LOW = mask_bytes(15)
_SCALES = [
    bytes_constant(([2 * i] + [128] * 3) * 8 + ([2 * i + 1] + [128] * 3) * 8) for i in range(4)
]
_SCALES0, _SCALES1, _SCALES2, _SCALES3 = _SCALES
# Every minimum twice, as int16: it meets the sums of 16.
_MINIMA = bytes_constant([v for i in range(8) for v in (i, 128, i, 128)] * 2)


@register_jitable
def store_orders(orders):
    """The byte orders that `unpack_scales` uses."""
    store(_SCALES0(), orders)
    store(_SCALES1(), orders + 64)
    store(_SCALES2(), orders + 128)
    store(_SCALES3(), orders + 192)
    store(_MINIMA(), orders + 256)


@register_jitable
def unpack_vectors(block, orders):
    """256 weights as bytes 0-15, scales and minima spread to where they are used."""
    u0, u1 = _LOW(_NIBBLES(load_twice256(block + 16))), _LOW(_NIBBLES(load_twice256(block + 48)))
    u2, u3 = _LOW(_NIBBLES(load_twice256(block + 80))), _LOW(_NIBBLES(load_twice256(block + 112)))
    s0, s1, s2, s3, minima = unpack_scales(block + 4, orders)
    return u0, u1, u2, u3, s0, s1, s2, s3, minima, load_half(block), load_half(block + 2)


@register_jitable
def unpack_scales(packed, orders):
    """The 12 bytes of scales and minima: four vectors of scales, 16 int16 of minima."""
    ab = load_i64(packed)
    a, b, c = ab & 0xFFFFFFFF, (ab >> 32) & 0xFFFFFFFF, load_i32(packed + 8) & 0xFFFFFFFF
    high = (c & 0x0F0F0F0F) | (a >> 2 & 0x30303030)
    scales = splat_8_bytes((a & 0x3F3F3F3F) | high << 32)
    high = (c >> 4 & 0x0F0F0F0F) | (b >> 2 & 0x30303030)
    minima = splat_8_bytes((b & 0x3F3F3F3F) | high << 32)
    return (
        look_up_bytes(scales, load(orders)),
        look_up_bytes(scales, load(orders + 64)),
        look_up_bytes(scales, load(orders + 128)),
        look_up_bytes(scales, load(orders + 192)),
        low_half(look_up_bytes(minima, load(orders + 256))),
    )


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_integer(
        store_orders,
        unpack_vectors,
        BYTES,
        w,
        stride,
        row0,
        n_rows,
        cols,
        acts,
        n_tokens,
        out,
        out_stride,
        scratch,
    )
