"""Q2_K: 256 values in 84 bytes: sixteen sub-blocks of 16 with a 4-bit scale and minimum each.

scales[16] (scale low nibble, minimum high), 64 bytes of bit pairs, float16 d, float16 dmin. In each
32 bytes bits 0-1 are 32 values in a row, bits 2-3 the next 32, and so on. weight = d * scale * q -
dmin * minimum.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits, pick_bits
from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import (
    PANEL_FACTORS,
    PANEL_MINIMA,
    PANEL_SCALES,
    quads,
    tile_products,
)
from cpu_experts.kernels.tiles import fill_pairs, tiles
from cpu_experts.kernels.vnni import dot_bytes_of, pack_thirty_twos, rows_integer
from cpu_experts.memory import load_f16, load_f32, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import (
    dot_bytes256,
    load_four128,
    load_twice128,
    multiply16,
    split_words,
    subtract_product,
    zero256,
)
from cpu_experts.vectors import (
    bytes_constant,
    fma,
    halves_to_floats,
    load,
    load256,
    look_up_bytes,
    mask_bytes,
    mask_lanes,
    shift_right16,
    shift_right32,
    splat_float,
    store,
    store_floats,
    to_floats,
    to_floats256,
    widen_floats,
    zero,
)

BLOCK, BYTES, SUB = 256, 84, 16


@jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 16 scales and 16 minima."""
    d, dmin = load_f16(block + 80), load_f16(block + 82)
    for s in range(16):
        packed = load_u8(block + s)
        store_f32(scales + 4 * s, d * np.float32(packed & 15))
        store_f32(minima + 4 * s, dmin * np.float32(packed >> 4))
    for part in range(8):
        for i in range(32):
            packed = load_u8(block + 16 + part // 4 * 32 + i)
            store_i8(values + part * 32 + i, packed >> (part % 4 * 2) & 3)


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


# The avx512_vnni tier: a table holds 0 to 3 times the scales of 4 sub-blocks.
_PAIR, _LOW = mask_bytes(3), mask_bytes(15)
_INDEX0, _INDEX1, _INDEX2, _INDEX3 = (
    move_bits(*[2 * i] * 4, mask=3, flips=4 * i) for i in range(4)
)
# The sub-blocks of lane l in four vectors, as words, twice: for products 0, 1 and 2, 3.
_ORDER = bytes_constant(
    [v for lane in (0, 1, 8, 9) for i in range(4) for v in (2 * i + lane, 128) * 2]
)
_TIMES = multiply16([0x0100, 0x0302] * 16)
_MINIMA = pick_bits([None] * 4 + [4, 5, 6, 7], [4, 5, 6, 7] + [None] * 4)


@jitable
def _store_order(orders):
    store(_ORDER(), orders)


@jitable
def _unpack(block, orders):
    """256 weights times their scales as bytes; minima times 16, and minima."""
    table = _TIMES(_LOW(look_up_bytes(load_four128(block), load(orders))))
    q = load(block + 16)
    w0, w1 = look_up_bytes(table, _INDEX0(q)), look_up_bytes(table, _INDEX1(q))
    w2, w3 = look_up_bytes(table, _INDEX2(q)), look_up_bytes(table, _INDEX3(q))
    return w0, w1, w2, w3, _MINIMA(load_twice128(block))


@jitable
def _dot(unpacked, packed, factors, total):
    """Products with the weights, less minima times sums; d and dmin are the last two factors."""
    products = to_floats(dot_bytes_of(unpacked, zero(), packed))
    minima = to_floats256(dot_bytes256(zero256(), unpacked[4], load256(packed)))
    total = fma(products, splat_float(load_f32(factors + 8)), total)
    return subtract_product(widen_floats(minima), splat_float(load_f32(factors + 12)), total)


@jitable
def _pack(values, sums16, packed):
    split_words(sums16, packed)
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
_WORD_LOW = mask_lanes(15)
_DOWN2, _DOWN4, _DOWN6 = (shift_right16(n, n, n, n) for n in (2, 4, 6))
_NIBBLE, _BY8, _BY16, _BY24 = mask_bytes(15), *(shift_right32(n) for n in (8, 16, 24))

_BIG, _SMALL = tile_products(16, words=True, minima=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for part in range(4):
        a, b, c, d = quads(block + 16 + 16 * part, stride)
        place = panel + 2048 * (part // 2) + 256 * (part % 2)
        _fill_four(a, place)
        _fill_four(b, place + 64)
        _fill_four(c, place + 128)
        _fill_four(d, place + 192)
    # The block's last dword: d and dmin.
    factors = quads(block + 68, stride)[3]
    store_floats(halves_to_floats(factors), panel + PANEL_FACTORS)
    store_floats(halves_to_floats(_BY16(factors)), panel + PANEL_FACTORS + 64)
    a, b, c, d = quads(block, stride)
    _fill_scales(a, panel)
    _fill_scales(b, panel + 256)
    _fill_scales(c, panel + 512)
    _fill_scales(d, panel + 768)
    fill_pairs(_NIBBLE(_DOWN4(a)), panel + PANEL_MINIMA)
    fill_pairs(_NIBBLE(_DOWN4(b)), panel + PANEL_MINIMA + 128)
    fill_pairs(_NIBBLE(_DOWN4(c)), panel + PANEL_MINIMA + 256)
    fill_pairs(_NIBBLE(_DOWN4(d)), panel + PANEL_MINIMA + 384)


@jitable
def _fill_four(pairs, place):
    """One quad of the four runs of 32 values that share bytes."""
    store(_PAIR(pairs), place)
    store(_PAIR(_DOWN2(pairs)), place + 512)
    store(_PAIR(_DOWN4(pairs)), place + 1024)
    store(_PAIR(_DOWN6(pairs)), place + 1536)


@jitable
def _fill_scales(packed, panel):
    """Four scales of every row as integers."""
    store(_WORD_LOW(packed), panel + PANEL_SCALES)
    store(_WORD_LOW(_BY8(packed)), panel + PANEL_SCALES + 64)
    store(_WORD_LOW(_BY16(packed)), panel + PANEL_SCALES + 128)
    store(_WORD_LOW(_BY24(packed)), panel + PANEL_SCALES + 192)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        16,
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
