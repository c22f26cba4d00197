"""IQ4_XS: 256 values in 136 bytes, IQ4_NL's codes with a 6-bit scale per 32 values.

float16 d, uint16 of the scales' high 2 bits, 4 bytes of their low 4 bits, 128 bytes of codes;
weight = d * (scale - 32) * CODEBOOK[code]. In a sub-block's 16 bytes low nibbles are values 0-15.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits
from cpu_experts.cache import jitable
from cpu_experts.kernels.iq4_nl import CODEBOOK, code_table, fill_codes
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.kernels.vnni import dot_bytes_in_pairs, pack_sixteens, rows_integer
from cpu_experts.memory import (
    load_f16,
    load_f32,
    load_i32,
    load_u8,
    load_u16,
    store_f32,
    store_i8,
)
from cpu_experts.row_vectors import (
    add_to_words,
    add_to_words16,
    look_up_bytes256,
    multiply_lanes,
    shift_words_left256,
    subtract_words,
    widen_words,
)
from cpu_experts.vectors import (
    add_words,
    bytes_constant,
    deposit_bits,
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
    shift_right_by,
    splat_8_bytes,
    splat_float,
    store,
    store256,
    store_floats,
    to_floats,
)

BLOCK, BYTES, SUB = 256, 136, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 8 scales and minima of 0."""
    d = load_f16(block)
    high = load_u16(block + 2)
    for s in range(8):
        low = load_u8(block + 4 + s // 2) >> (s % 2 * 4) & 15
        scale = (low | (high >> (2 * s) & 3) << 4) - 32
        store_f32(scales + 4 * s, d * np.float32(scale))
        store_f32(minima + 4 * s, 0.0)
        for i in range(16):
            packed = load_u8(block + 8 + 16 * s + i)
            store_i8(values + 32 * s + i, CODEBOOK[packed & 15])
            store_i8(values + 32 * s + 16 + i, CODEBOOK[packed >> 4])


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
# Scales of four sub-blocks, each for 4 sums of 128 bits; and every one twice, for the sums of 16.
_SCALES0, _SCALES1 = (
    bytes_constant([v for lane in range(4) for v in (4 * i + lane, 128, 128, 128) * 4])
    for i in range(2)
)
_WORDS = bytes_constant([v for i in range(8) for v in (i, 128, i, 128)] * 2)
_LESS, _LESS_WORDS = add_to_words(-32), add_to_words16(-32)
_TIMES128 = shift_words_left256(7)


@jitable
def _store_orders(orders):
    store(_SCALES0(), orders)
    store(_SCALES1(), orders + 64)
    store(_WORDS(), orders + 128)


@jitable
def _pack(values, sums16, packed):
    """Of four sub-blocks the first 16 values of each, then the others."""
    store256(load256(sums16), packed)
    pack_sixteens(values, packed)


@jitable
def _unpack(block, orders):
    """256 weights plus 128 as bytes, scales for four sub-blocks each, and as words."""
    q, r, table = load(block + 8), load(block + 72), code_table()
    u0, u1 = look_up_bytes(table, _LOW(q)), look_up_bytes(table, _UPPER(q))
    u2, u3 = look_up_bytes(table, _LOW(r)), look_up_bytes(table, _UPPER(r))
    scales = splat_8_bytes(_unpack_scales(block))
    s0 = _LESS(look_up_bytes(scales, load(orders)))
    s1 = _LESS(look_up_bytes(scales, load(orders + 64)))
    words = _LESS_WORDS(look_up_bytes256(low_half(scales), load256(orders + 128)))
    return u0, u1, u2, u3, s0, s1, words


@jitable
def _unpack_scales(block):
    """The 8 scales of a block, plus 32, as bytes."""
    low = deposit_bits(load_i32(block + 4) & 0xFFFFFFFF, 0x0F0F0F0F0F0F0F0F)
    return low | deposit_bits(load_u16(block + 2), 0x3030303030303030)


@jitable
def _dot(unpacked, packed, factors, total):
    """Products with the weights, both vectors of four sub-blocks before their scales, less how much
    they are too big; d is the first factor.
    """
    first, second = dot_bytes_in_pairs(unpacked, packed)
    sums = add_words(multiply_lanes(first, unpacked[4]), multiply_lanes(second, unpacked[5]))
    less = widen_words(_TIMES128(multiply_add16(unpacked[6], load256(packed))))
    return fma(to_floats(subtract_words(sums, less)), splat_float(load_f32(factors)), total)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_integer(
        _store_orders,
        _pack,
        _unpack,
        _dot,
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
_FOUR, _TOP = mask_lanes(15), mask_lanes(0x30)

_BIG, _SMALL = tile_products(32)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    table = code_table()
    for s in range(8):
        a, b, c, d = quads(block + 8 + 16 * s, stride)
        fill_codes(table, a, panel + 512 * s)
        fill_codes(table, b, panel + 512 * s + 64)
        fill_codes(table, c, panel + 512 * s + 128)
        fill_codes(table, d, panel + 512 * s + 192)
    heads = quads(block, stride)
    d = halves_to_floats(heads[0])
    less = multiply(d, splat_float(np.float32(-32.0)))
    for s in range(8):
        # The high two bits of scale s are bits 16 + 2s and 17 + 2s of the first dword.
        low, high = shift_right_by(heads[1], 4 * s), shift_right_by(heads[0], 12 + 2 * s)
        scale = to_floats(or_(_FOUR(low), _TOP(high)))
        store_floats(fma(scale, d, less), panel + PANEL_SCALES + 64 * s)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        32,
        128,
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
