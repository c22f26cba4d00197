"""Q5_0: 32 values in 22 bytes: float16 d, 32 high bits, 16 bytes of low nibbles.

weight = d * (q - 16); value i has bit i of the high word.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q4_0 import nibbles
from cpu_experts.kernels.q8_0 import fill_block_scales
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_i32, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import strided_halves
from cpu_experts.vectors import (
    choose_lanes,
    lanes_constant,
    mask_bytes,
    multiply256,
    or_,
    set_where,
    shift_right16,
    shift_right_by,
    splat_float256,
    store,
)

BLOCK, BYTES, SUB = 32, 22, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and a minimum of 0."""
    store_f32(scales, load_f16(block))
    store_f32(minima, 0.0)
    high = load_i32(block + 2)
    for i in range(16):
        packed = load_u8(block + 6 + i)
        store_i8(values + i, ((packed & 15) | (high >> i & 1) << 4) - 16)
        store_i8(values + 16 + i, (packed >> 4 | (high >> (i + 16) & 1) << 4) - 16)


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
_FIFTH = set_where(16)


@jitable
def values_of_5_bits(first, second):
    """The 64 values of two blocks, from their nibbles and the high words before them."""
    bits = (load_i32(first - 4) & 0xFFFFFFFF) | np.int64(load_i32(second - 4)) << 32
    return _FIFTH(nibbles(first, second), bits)


_HALVES = strided_halves(BYTES)


@jitable
def unpack_vectors(blocks):
    """8 blocks: weights plus 16 as bytes, scales, and corrections that take the 16 off."""
    u0 = values_of_5_bits(blocks + 6, blocks + 28)
    u1 = values_of_5_bits(blocks + 50, blocks + 72)
    u2 = values_of_5_bits(blocks + 94, blocks + 116)
    u3 = values_of_5_bits(blocks + 138, blocks + 160)
    d = _HALVES(blocks)
    return u0, u1, u2, u3, d, multiply256(d, splat_float256(-16.0))


def rows_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t."""
    rows_scaled(
        unpack_vectors,
        BLOCK,
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


# Many tokens.
_LOW, _DOWN = mask_bytes(15), shift_right16(4, 4, 4, 4)
# Lane i has bit k of i as bit 4 of byte k.
fifth_bits = lanes_constant([sum((i >> k & 1) << (8 * k + 4) for k in range(4)) for i in range(16)])

_BIG, _SMALL = tile_products(32, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    table = fifth_bits()
    for s in range(8):
        quants = block + s * BYTES + 6
        high = quads(quants - 4, stride)[0]
        a, b, c, d = quads(quants, stride)
        place = panel + 512 * s
        fill_5_bits(table, high, 0, a, place)
        fill_5_bits(table, high, 4, b, place + 64)
        fill_5_bits(table, high, 8, c, place + 128)
        fill_5_bits(table, high, 12, d, place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)


@jitable
def fill_5_bits(table, high, first, both, place):
    """Two quads of values, whose fifth bits start at bits `first` and `first` + 16 of `high`."""
    # The table is looked up with the low 4 bits of each lane.
    bits = choose_lanes(table, shift_right_by(high, first))
    store(or_(_LOW(both), bits), place)
    bits = choose_lanes(table, shift_right_by(high, 16 + first))
    store(or_(_LOW(_DOWN(both)), bits), place + 256)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens; cols a multiple of 256."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        SUB,
        16,
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
