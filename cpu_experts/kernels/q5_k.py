"""Q5_K: Q4_K with a fifth bit: 256 values in 176 bytes.

float16 d, float16 dmin, 12 bytes of packed scales and minima, 32 bytes of high bits (bit s of byte
i belongs to value i of sub-block s), 128 bytes of nibbles. weight = d * scale * q - dmin * minimum.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.bits import move_bits
from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q4_k import (
    dot,
    pack,
    quads_of_scales,
    scale_and_minimum,
    store_orders,
    unpack_scales,
)
from cpu_experts.kernels.tile_code import (
    PANEL_FACTORS,
    PANEL_MINIMA,
    PANEL_SCALES,
    quads,
    tile_products,
)
from cpu_experts.kernels.tiles import fill_pairs, tiles
from cpu_experts.kernels.vnni import rows_integer
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8
from cpu_experts.vectors import (
    halves_to_floats,
    load,
    load_twice256,
    mask_bytes,
    mask_lanes,
    multiply,
    or_,
    shift_left16,
    shift_right16,
    shift_right32,
    store,
    store_floats,
    to_floats,
)

BLOCK, BYTES, SUB = 256, 176, 32


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
            low = load_u8(block + 48 + s // 2 * 32 + i) >> shift & 15
            store_i8(values + 32 * s + i, low | (load_u8(block + 16 + i) >> s & 1) << 4)


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
_UPPER, _LOW, _FIFTH = move_bits(4, 4, 4, 4, mask=15), mask_bytes(15), mask_bytes(16)
# Sub-block s finds its fifth bit in bit s: these bring those of a vector's two to bit 4.
_HIGH0, _HIGH1 = move_bits(-4, -4, -2, -2, mask=16), move_bits(-3, -3, -1, -1, mask=16)
_HIGH2, _HIGH3 = move_bits(0, 0, 2, 2, mask=16), move_bits(1, 1, 3, 3, mask=16)


@jitable
def unpack_vectors(block, orders):
    """256 weights as bytes 0-31, scales and minima spread to where they are used."""
    high, q, r = load_twice256(block + 16), load(block + 48), load(block + 112)
    u0, u1 = or_(_LOW(q), _HIGH0(high)), or_(_UPPER(q), _HIGH1(high))
    u2, u3 = or_(_LOW(r), _HIGH2(high)), or_(_UPPER(r), _HIGH3(high))
    s01, s23, minima = unpack_scales(block + 4, orders)
    return u0, u1, u2, u3, s01, s23, minima


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
_DOWN = shift_right16(4, 4, 4, 4)
_UP4, _UP3, _UP2, _UP1 = (shift_left16(n, n, n, n) for n in (4, 3, 2, 1))
_DOWN1, _DOWN2, _DOWN3 = (shift_right16(n, n, n, n) for n in (1, 2, 3))

_BYTE = mask_lanes(255)
_BY8, _BY16, _BY24 = (shift_right32(count) for count in (8, 16, 24))

_BIG, _SMALL = tile_products(32, minima=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for half in range(2):
        high = quads(block + 16 + 16 * half, stride)
        q = block + 48 + 16 * half
        first, second = quads(q, stride), quads(q + 32, stride)
        third, fourth = quads(q + 64, stride), quads(q + 96, stride)
        place = panel + 256 * half
        _fill_eight(high[0], first[0], second[0], third[0], fourth[0], place)
        _fill_eight(high[1], first[1], second[1], third[1], fourth[1], place + 64)
        _fill_eight(high[2], first[2], second[2], third[2], fourth[2], place + 128)
        _fill_eight(high[3], first[3], second[3], third[3], fourth[3], place + 192)
    _fill_scales(block, stride, panel)


@jitable
def _fill_eight(high, first, second, third, fourth, place):
    """One quad of eight sub-blocks."""
    store(or_(_LOW(first), _FIFTH(_UP4(high))), place)
    store(or_(_LOW(_DOWN(first)), _FIFTH(_UP3(high))), place + 512)
    store(or_(_LOW(second), _FIFTH(_UP2(high))), place + 1024)
    store(or_(_LOW(_DOWN(second)), _FIFTH(_UP1(high))), place + 1536)
    store(or_(_LOW(third), _FIFTH(high)), place + 2048)
    store(or_(_LOW(_DOWN(third)), _FIFTH(_DOWN1(high))), place + 2560)
    store(or_(_LOW(fourth), _FIFTH(_DOWN2(high))), place + 3072)
    store(or_(_LOW(_DOWN(fourth)), _FIFTH(_DOWN3(high))), place + 3584)


@jitable
def _fill_scales(block, stride, panel):
    """Scales as float32, minima as pairs of int16 with a factor."""
    heads, scales, more_scales, minima, more_minima = quads_of_scales(block, stride)
    d = halves_to_floats(heads)
    _fill_four(scales, d, panel + PANEL_SCALES)
    _fill_four(more_scales, d, panel + PANEL_SCALES + 256)
    fill_pairs(minima, panel + PANEL_MINIMA)
    fill_pairs(more_minima, panel + PANEL_MINIMA + 128)
    store_floats(halves_to_floats(_BY16(heads)), panel + PANEL_FACTORS + 64)


@jitable
def _fill_four(packed, factor, target):
    """Four bytes of every row as four vectors of scales."""
    store_floats(multiply(to_floats(_BYTE(packed)), factor), target)
    store_floats(multiply(to_floats(_BYTE(_BY8(packed))), factor), target + 64)
    store_floats(multiply(to_floats(_BYTE(_BY16(packed))), factor), target + 128)
    store_floats(multiply(to_floats(_BY24(packed)), factor), target + 192)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        32,
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
