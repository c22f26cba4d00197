"""Q3_K: 256 values in 110 bytes: sixteen sub-blocks of 16 with a 6-bit signed scale each.

32 bytes of high bits, 64 bytes of bit pairs (placed as in Q2_K), 12 bytes of packed scales, float16
d. Bit p of high byte i belongs to value i of the p-th 32 values; where it is clear, 4 is taken off.
weight = d * (scale - 32) * q.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits, pick_bits
from cpu_experts.cache import inner, jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import PANEL_FACTORS, PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.kernels.vnni import dot_bytes_of, pack_thirty_twos, rows_integer
from cpu_experts.memory import load_f16, load_f32, load_i32, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import add_bytes, multiply16, widen_words, words_constant256
from cpu_experts.vectors import (
    add_words,
    bytes_constant,
    fma,
    halves_to_floats,
    lanes_constant,
    load,
    load256,
    load_twice256,
    look_up_bytes,
    mask_bytes,
    mask_lanes,
    multiply_add16,
    or_,
    shift_left16,
    shift_right16,
    shift_right32,
    splat_8_bytes,
    splat_float,
    store,
    store256,
    store_floats,
    to_floats,
)

BLOCK, BYTES, SUB = 256, 110, 16


@inner
def scale_of(packed, s):
    """The scale of sub-block `s` (0-15), -32 to 31, from the 12 bytes at `packed`."""
    low = load_u8(packed + s % 8) >> (s // 8 * 4) & 15
    high = load_u8(packed + 8 + s % 4) >> (s // 4 * 2) & 3
    return (low | high << 4) - 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 16 scales and minima of 0."""
    d = load_f16(block + 108)
    for s in range(16):
        store_f32(scales + 4 * s, d * np.float32(scale_of(block + 96, s)))
        store_f32(minima + 4 * s, 0.0)
    for part in range(8):
        for i in range(32):
            low = load_u8(block + 32 + part // 4 * 32 + i) >> (part % 4 * 2) & 3
            high = load_u8(block + i) >> part & 1
            store_i8(values + part * 32 + i, low - 4 + 4 * high)


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


# The avx512_vnni tier: a table holds -4 to 3 times the scales of 2 sub-blocks, plus 127.
_PAIR, _THIRD = mask_bytes(3), mask_bytes(4)
_LOW, _HIGH = mask_bytes(15), mask_bytes(0xF0)
# The p-th 32 values find their third bit in bit p: the first half's in the low nibbles. Nibbles of
# bit pairs meet those of third bits in a byte: the index is the third bit, flipped, the pair, and
# which of the two sub-blocks it is.
_THIRDS_LOW = move_bits(0, 0, 4, 4, mask=15)
_THIRDS_HIGH = move_bits(-4, -4, 0, 0, mask=0xF0)
_INDEX0, _INDEX1, _INDEX2, _INDEX3 = (
    pick_bits(*[[third, pair, pair + 1] + [None] * 5] * 4, flips=flips)
    for third, pair, flips in ((4, 0, 1), (5, 2, 9), (2, 4, 1), (3, 6, 9))
)
# A byte pair of the table is q and q - 4 times the scale, of q from 0 to 3: as one product of 16
# bits, for no scale of 0 to 63 carries from the first into the second. The scale is 32 too much.
_TIMES = multiply16([(q - 4 & 255) << 8 | q for q in range(4)] * 8)
_LESS = add_bytes([127 - 32 * value & 255 for q in range(4) for value in (q, q - 4)] * 8)
# Of 4 scales of either half in every lane: that of a vector's sub-block as four words, then the
# next vector's.
_ORDER = bytes_constant(
    [v for lane in (0, 1, 4, 5) for s in (lane, lane + 2) for v in (s, 128) * 4]
)
_MINUS127 = words_constant256([-127] * 16)


@jitable
def _store_order(orders):
    store(_ORDER(), orders)


@jitable
def _unpack(block, orders):
    """256 weights times their scales plus 127, as bytes."""
    thirds, q, order = load_twice256(block), load(block + 32), load(orders)
    low, high = or_(_LOW(q), _THIRDS_HIGH(thirds)), or_(_HIGH(q), _THIRDS_LOW(thirds))
    first, second = _unpack_scales(block + 96)
    table = _LESS(_TIMES(look_up_bytes(splat_8_bytes(first), order)))
    w0, w1 = look_up_bytes(table, _INDEX0(low)), look_up_bytes(table, _INDEX1(low))
    table = _LESS(_TIMES(look_up_bytes(splat_8_bytes(second), order)))
    w2, w3 = look_up_bytes(table, _INDEX2(high)), look_up_bytes(table, _INDEX3(high))
    return w0, w1, w2, w3


@jitable
def _unpack_scales(packed):
    """The 12 bytes of 6-bit scales as 8 bytes: 0 to 3 and 8 to 11, and the others as 8 more."""
    a, b, pairs = load_i32(packed), load_i32(packed + 4), load_i32(packed + 8)
    # Pair k of byte j of the last four belongs to scale 4k + j; the low bits are nibbles.
    return _eight(a, pairs), _eight(b, pairs >> 2)


@jitable
def _eight(nibbles, pairs):
    """Four scales by the low bits of 4 bytes, and four by the high ones."""
    low = (nibbles & 0x0F0F0F0F) | (pairs & 0x03030303) << 4
    return low | ((nibbles >> 4 & 0x0F0F0F0F) | (pairs >> 4 & 0x03030303) << 4) << 32


@jitable
def _dot(unpacked, packed, factors, total):
    """Products with the weights, less what the 127 adds; d is the last factor."""
    sums = dot_bytes_of(unpacked, widen_words(load256(packed)), packed)
    return fma(to_floats(sums), splat_float(load_f32(factors + 12)), total)


@jitable
def _pack(values, sums16, packed):
    """The sums are -127 times as much, as 8 int32: what the tables' 127 adds."""
    store256(multiply_add16(_MINUS127(), load256(sums16)), packed)
    pack_thirty_twos(values, packed, 128)


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_integer(
        _store_order,
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
_UP4, _UP2, _UP1 = (shift_left16(n, n, n, n) for n in (4, 2, 1))
_DOWN1, _DOWN2, _DOWN3, _DOWN4, _DOWN5, _DOWN6 = (
    shift_right16(n, n, n, n) for n in (1, 2, 3, 4, 5, 6)
)
_TOP, _BYTE, _WORD = mask_bytes(0x30), mask_lanes(255), mask_lanes(0xFFFF)
_BY8, _BY16, _BY24 = (shift_right32(count) for count in (8, 16, 24))
_LESS32 = lanes_constant([-32] * 16)

_BIG, _SMALL = tile_products(16, words=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for half in range(2):
        high = quads(block + 16 * half, stride)
        pairs = block + 32 + 16 * half
        first, second = quads(pairs, stride), quads(pairs + 32, stride)
        place = panel + 256 * half
        _fill_eight(high[0], first[0], second[0], place)
        _fill_eight(high[1], first[1], second[1], place + 64)
        _fill_eight(high[2], first[2], second[2], place + 128)
        _fill_eight(high[3], first[3], second[3], place + 192)
    # The block's end: a dword of bit pairs, three of scales; and d, in the last dword.
    scales = quads(block + 92, stride)
    d = _BY16(quads(block + 94, stride)[3])
    store_floats(halves_to_floats(d), panel + PANEL_FACTORS)
    a, b, c = scales[1], scales[2], scales[3]
    _fill_four(or_(_LOW(a), _TOP(_UP4(c))), panel + PANEL_SCALES)
    _fill_four(or_(_LOW(b), _TOP(_UP2(c))), panel + PANEL_SCALES + 256)
    _fill_four(or_(_LOW(_DOWN4(a)), _TOP(c)), panel + PANEL_SCALES + 512)
    _fill_four(or_(_LOW(_DOWN4(b)), _TOP(_DOWN2(c))), panel + PANEL_SCALES + 768)


@jitable
def _fill_eight(high, first, second, place):
    """One quad of the eight runs of 32 values."""
    store(or_(_PAIR(first), _THIRD(_UP2(high))), place)
    store(or_(_PAIR(_DOWN2(first)), _THIRD(_UP1(high))), place + 512)
    store(or_(_PAIR(_DOWN4(first)), _THIRD(high)), place + 1024)
    store(or_(_PAIR(_DOWN6(first)), _THIRD(_DOWN1(high))), place + 1536)
    store(or_(_PAIR(second), _THIRD(_DOWN2(high))), place + 2048)
    store(or_(_PAIR(_DOWN2(second)), _THIRD(_DOWN3(high))), place + 2560)
    store(or_(_PAIR(_DOWN4(second)), _THIRD(_DOWN4(high))), place + 3072)
    store(or_(_PAIR(_DOWN6(second)), _THIRD(_DOWN5(high))), place + 3584)


@jitable
def _fill_four(packed, place):
    """Four scales of every row, 32 taken off, as int16 in the low half of a lane."""
    store(_WORD(add_words(_BYTE(packed), _LESS32())), place)
    store(_WORD(add_words(_BYTE(_BY8(packed)), _LESS32())), place + 64)
    store(_WORD(add_words(_BYTE(_BY16(packed)), _LESS32())), place + 128)
    store(_WORD(add_words(_BY24(packed), _LESS32())), place + 192)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        16,
        4,
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
