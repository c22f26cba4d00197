"""Q6_K: 256 values in 210 bytes: sixteen sub-blocks of 16 with an int8 scale each.

128 bytes of low nibbles, 64 bytes of high bit pairs, int8 scales[16], float16 d. Each half of 128
values takes 64 + 32 bytes: values 0-31 and 32-63 are the low nibbles of the two runs of 32 bytes,
64-95 and 96-127 the high ones, and their bit pairs are bits 0-1, 2-3, 4-5, 6-7 of the 32 bytes.
weight = d * scale * (q - 32).
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits
from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.kernels.vnni import dot_scaled, pack_thirty_twos, rows_integer
from cpu_experts.memory import load_f16, load_f32, load_i8, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import (
    choose_words,
    subtract_words,
    widen_words,
    words_constant,
)
from cpu_experts.vectors import (
    fma,
    halves_to_floats,
    load,
    load256,
    load_i8_as_16,
    load_twice256,
    mask_bytes,
    multiply,
    multiply_add16,
    or_,
    shift_left16,
    shift_left16_256,
    shift_right16,
    shift_right32,
    signed_byte,
    splat_float,
    store,
    store256,
    store_floats,
    to_floats,
)

BLOCK, BYTES, SUB = 256, 210, 16


@jitable
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
_LOW, _HIGH = mask_bytes(15), mask_bytes(0x30)
_DOWN = shift_right16(4, 4, 4, 4)
# The four bit pairs of the same 32 bytes, brought to bits 4-5.
_FIRST, _SECOND = move_bits(-4, -4, -2, -2, mask=0x30), move_bits(0, 0, 2, 2, mask=0x30)
_UPPER = move_bits(4, 4, 4, 4, mask=15)
_TIMES32 = shift_left16_256(5)
# Scales of the sub-blocks of two vectors: for 4 sums of the first one in 128 bits, then 4 of the
# second one.
_SCALES01, _SCALES23 = (
    words_constant([8 * i + lane + s for lane in range(4) for s in (0, 4) for _ in range(4)])
    for i in range(2)
)


@jitable
def _store_orders(orders):
    store(_SCALES01(), orders)
    store(_SCALES23(), orders + 64)


@jitable
def _pack(values, sums16, packed):
    """In order, as the weights are."""
    store256(load256(sums16), packed)
    pack_thirty_twos(values, packed, 32)


@jitable
def _unpack(block, orders):
    """256 weights as bytes 0-63 (32 too much), scales spread to where they are used, and as 16."""
    low, high = load(block), load_twice256(block + 128)
    u0 = or_(_LOW(low), _FIRST(high))
    u1 = or_(_UPPER(low), _SECOND(high))
    low, high = load(block + 64), load_twice256(block + 160)
    u2 = or_(_LOW(low), _FIRST(high))
    u3 = or_(_UPPER(low), _SECOND(high))
    scales = load_i8_as_16(block + 192)
    s01, s23 = choose_words(load(orders), scales), choose_words(load(orders + 64), scales)
    return u0, u1, u2, u3, s01, s23, _TIMES32(scales)


@jitable
def _dot(unpacked, packed, factors, total):
    """Products with the weights, less how much they are too big; d is the last factor."""
    less = widen_words(multiply_add16(unpacked[6], load256(packed)))
    sums = subtract_words(dot_scaled(unpacked, packed), less)
    return fma(to_floats(sums), splat_float(load_f32(factors + 12)), total)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_integer(
        _store_orders,
        _pack,
        _unpack,
        _dot,
        BYTES,
        BYTES - 8,
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
_BY4, _BY2 = shift_left16(4, 4, 4, 4), shift_left16(2, 2, 2, 2)
_DOWN2, _HALF = shift_right16(2, 2, 2, 2), shift_right32(16)
_BYTE0, _BYTE1, _BYTE2, _BYTE3 = (signed_byte(i) for i in range(4))

_BIG, _SMALL = tile_products(16)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for part in range(4):
        half, i = part // 2, part % 2
        low = block + 64 * half + 16 * i
        first, second = quads(low, stride), quads(low + 32, stride)
        high = quads(block + 128 + 32 * half + 16 * i, stride)
        place = panel + 2048 * half + 256 * i
        _fill_four(first[0], second[0], high[0], place)
        _fill_four(first[1], second[1], high[1], place + 64)
        _fill_four(first[2], second[2], high[2], place + 128)
        _fill_four(first[3], second[3], high[3], place + 192)
    # The dword that ends the block: two scales and d.
    d = halves_to_floats(_HALF(quads(block + 194, stride)[3]))
    scales = quads(block + 192, stride)
    _fill_scales(scales[0], d, panel + PANEL_SCALES)
    _fill_scales(scales[1], d, panel + PANEL_SCALES + 256)
    _fill_scales(scales[2], d, panel + PANEL_SCALES + 512)
    _fill_scales(scales[3], d, panel + PANEL_SCALES + 768)


@jitable
def _fill_four(first, second, high, place):
    """One quad of the four runs of 32 values that share bytes."""
    store(or_(_LOW(first), _HIGH(_BY4(high))), place)
    store(or_(_LOW(second), _HIGH(_BY2(high))), place + 512)
    store(or_(_LOW(_DOWN(first)), _HIGH(high)), place + 1024)
    store(or_(_LOW(_DOWN(second)), _HIGH(_DOWN2(high))), place + 1536)


@jitable
def _fill_scales(packed, d, place):
    """Four int8 scales of every row."""
    store_floats(multiply(to_floats(_BYTE0(packed)), d), place)
    store_floats(multiply(to_floats(_BYTE1(packed)), d), place + 64)
    store_floats(multiply(to_floats(_BYTE2(packed)), d), place + 128)
    store_floats(multiply(to_floats(_BYTE3(packed)), d), place + 192)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        16,
        32,
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
