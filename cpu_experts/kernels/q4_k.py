"""Q4_K: 256 values in 144 bytes: eight sub-blocks of 32 with a 6-bit scale and minimum each.

float16 d, float16 dmin, 12 bytes of packed scales and minima, 128 bytes of nibbles; in each 32
bytes the low nibbles are one sub-block, the high ones the next. weight = d * scale * q - dmin *
minimum.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits
from cpu_experts.cache import inner, jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import (
    PANEL_FACTORS,
    PANEL_MINIMA,
    PANEL_SCALES,
    quads,
    tile_products,
)
from cpu_experts.kernels.tiles import tiles
from cpu_experts.kernels.vnni import dot_scaled, pack_thirty_twos, rows_integer
from cpu_experts.memory import load_f16, load_f32, load_i32, load_i64, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import look_up_bytes256, subtract_product
from cpu_experts.vectors import (
    bytes_constant,
    fma,
    halves_to_floats,
    load,
    load256,
    look_up_bytes,
    low_half,
    mask_bytes,
    mask_lanes,
    multiply,
    multiply_add16,
    or_,
    shift_right16,
    shift_right32,
    splat_8_bytes,
    splat_float,
    store,
    store256,
    store_floats,
    to_floats,
    to_floats256,
    widen_floats,
)

BLOCK, BYTES, SUB = 256, 144, 32


@inner
def scale_and_minimum(packed, s):
    """The 6-bit scale and minimum of sub-block `s` (0-7), from the 12 bytes at `packed`."""
    if s < 4:
        return load_u8(packed + s) & 63, load_u8(packed + 4 + s) & 63
    both = load_u8(packed + 4 + s)
    scale = (both & 15) | load_u8(packed + s - 4) >> 6 << 4
    return scale, both >> 4 | load_u8(packed + s) >> 6 << 4


@jitable
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
_UPPER, _LOW = move_bits(4, 4, 4, 4, mask=15), mask_bytes(15)
# Scales of the sub-blocks of two vectors, as words: 4 for the first one's sums in 128 bits, then 4
# for the second one's.
_SCALES01, _SCALES23 = (
    bytes_constant([v for s in (0, 1, 0, 1, 2, 3, 2, 3) for v in (4 * i + s, 128) * 4])
    for i in range(2)
)
# Every minimum twice, as int16: it meets the sums of 16.
_MINIMA = bytes_constant([v for i in range(8) for v in (i, 128, i, 128)] * 2)


@jitable
def store_orders(orders):
    """The byte orders that `unpack_scales` uses."""
    store(_SCALES01(), orders)
    store(_SCALES23(), orders + 64)
    store(_MINIMA(), orders + 128)


@jitable
def pack(values, sums16, packed):
    """Activations for two sub-blocks of low nibbles, then two of high ones."""
    store256(load256(sums16), packed)
    pack_thirty_twos(values, packed, 64)


@jitable
def unpack_vectors(block, orders):
    """256 weights as bytes 0-15, scales and minima spread to where they are used."""
    q, r = load(block + 16), load(block + 80)
    s01, s23, minima = unpack_scales(block + 4, orders)
    return _LOW(q), _UPPER(q), _LOW(r), _UPPER(r), s01, s23, minima


@jitable
def unpack_scales(packed, orders):
    """The 12 bytes of scales and minima: two vectors of scales, 16 int16 of minima."""
    ab = load_i64(packed)
    a, b, c = ab & 0xFFFFFFFF, (ab >> 32) & 0xFFFFFFFF, load_i32(packed + 8) & 0xFFFFFFFF
    high = (c & 0x0F0F0F0F) | (a >> 2 & 0x30303030)
    scales = splat_8_bytes((a & 0x3F3F3F3F) | high << 32)
    high = (c >> 4 & 0x0F0F0F0F) | (b >> 2 & 0x30303030)
    minima = low_half(splat_8_bytes((b & 0x3F3F3F3F) | high << 32))
    return (
        look_up_bytes(scales, load(orders)),
        look_up_bytes(scales, load(orders + 64)),
        look_up_bytes256(minima, load256(orders + 128)),
    )


@jitable
def dot(unpacked, packed, factors, total):
    """Products with the weights, less minima times sums; d and dmin are the first two factors."""
    products = to_floats(dot_scaled(unpacked, packed))
    minima = to_floats256(multiply_add16(unpacked[6], load256(packed)))
    total = fma(products, splat_float(load_f32(factors)), total)
    return subtract_product(widen_floats(minima), splat_float(load_f32(factors + 4)), total)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_integer(
        store_orders,
        pack,
        unpack_vectors,
        dot,
        BYTES,
        0,
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


# Many tokens.
_DOWN, _SIX, _TOP, _BYTE = (
    shift_right16(4, 4, 4, 4),
    mask_bytes(63),
    mask_bytes(0x30),
    mask_lanes(255),
)
_BY2, _BY8, _BY16, _BY24 = (shift_right32(count) for count in (2, 8, 16, 24))

# Less 8, a weight is at most 8: 32 products with int8 are at most 32,512.
_MIDDLE = 8
_BIG, _SMALL = tile_products(32, words=True, minima=True, centred=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for i in range(8):
        a, b, c, d = quads(block + 16 + 16 * i, stride)
        place = panel + 1024 * (i // 2) + 256 * (i % 2)
        _fill_two(a, place)
        _fill_two(b, place + 64)
        _fill_two(c, place + 128)
        _fill_two(d, place + 192)
    _fill_scales(block, stride, panel)


@jitable
def _fill_two(both, place):
    """One quad of two sub-blocks."""
    store(_LOW(both), place)
    store(_LOW(_DOWN(both)), place + 512)


@jitable
def _fill_scales(block, stride, panel):
    """Integer scales, and minima less the middle: dmin * minimum - d * scale * middle."""
    heads, scales, more_scales, minima, more_minima = quads_of_scales(block, stride)
    d, d_minima = halves_to_floats(heads), halves_to_floats(_BY16(heads))
    d_middle = multiply(d, splat_float(np.float32(-_MIDDLE)))
    _fill_four(scales, minima, d_minima, d_middle, panel)
    _fill_four(more_scales, more_minima, d_minima, d_middle, panel + 256)
    store_floats(d, panel + PANEL_FACTORS)


@jitable
def _fill_four(scales, minima, d_minima, d_middle, panel):
    """Four bytes of every row as scales and minima of four sub-blocks."""
    _fill_one(_BYTE(scales), _BYTE(minima), d_minima, d_middle, panel)
    _fill_one(_BYTE(_BY8(scales)), _BYTE(_BY8(minima)), d_minima, d_middle, panel + 64)
    _fill_one(_BYTE(_BY16(scales)), _BYTE(_BY16(minima)), d_minima, d_middle, panel + 128)
    _fill_one(_BY24(scales), _BY24(minima), d_minima, d_middle, panel + 192)


@jitable
def _fill_one(scale, minimum, d_minima, d_middle, panel):
    store(scale, panel + PANEL_SCALES)
    middle = multiply(to_floats(scale), d_middle)
    store_floats(fma(to_floats(minimum), d_minima, middle), panel + PANEL_MINIMA)


@jitable
def quads_of_scales(block, stride):
    """The dword of d and dmin, and of scales and minima 0-3 and 4-7: a row per lane.

    The arithmetic of `unpack_scales`.
    """
    heads, a, b, c = quads(block, stride)
    scales, minima = or_(_LOW(c), _TOP(_BY2(a))), or_(_LOW(_DOWN(c)), _TOP(_BY2(b)))
    return heads, _SIX(a), scales, _SIX(b), minima


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        SUB,
        _MIDDLE,
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
