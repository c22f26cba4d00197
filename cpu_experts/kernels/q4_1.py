"""Q4_1: 32 values in 20 bytes: float16 d, float16 m, 16 bytes of nibbles.

Low nibbles are values 0-15, high ones 16-31; weight = d * q + m.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q4_0 import fill_nibbles, nibbles
from cpu_experts.kernels.q8_0 import fill_block_scales
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_MINIMA, PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import even_floats, odd_floats, strided_pairs
from cpu_experts.vectors import (
    halves_to_floats,
    multiply,
    shift_right32,
    splat_float,
    store_floats,
)

BLOCK, BYTES, SUB = 32, 20, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and one minimum (-m)."""
    store_f32(scales, load_f16(block))
    store_f32(minima, -load_f16(block + 2))
    for i in range(16):
        packed = load_u8(block + 4 + i)
        store_i8(values + i, packed & 15)
        store_i8(values + 16 + i, packed >> 4)


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

_PAIRS = strided_pairs(BYTES)


@jitable
def unpack_vectors(blocks):
    """8 blocks: bytes, scales, and the minima as corrections."""
    u0 = nibbles(blocks + 4, blocks + 24)
    u1 = nibbles(blocks + 44, blocks + 64)
    u2 = nibbles(blocks + 84, blocks + 104)
    u3 = nibbles(blocks + 124, blocks + 144)
    pairs = _PAIRS(blocks)
    return u0, u1, u2, u3, even_floats(pairs), odd_floats(pairs)


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
_BY16 = shift_right32(16)

_BIG, _SMALL = tile_products(32, minima=True, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for s in range(8):
        a, b, c, d = quads(block + s * BYTES + 4, stride)
        place = panel + 512 * s
        fill_nibbles(a, place)
        fill_nibbles(b, place + 64)
        fill_nibbles(c, place + 128)
        fill_nibbles(d, place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)
    fill_block_minima(BYTES, block, stride, panel + PANEL_MINIMA)


@jitable
def fill_block_minima(n_bytes, block, stride, target):
    """The second float16 of each of 8 blocks, of every row, negative: the tile takes minima off."""
    for s in range(8):
        heads = quads(block + s * n_bytes, stride)
        minima = multiply(halves_to_floats(_BY16(heads[0])), splat_float(np.float32(-1.0)))
        store_floats(minima, target + 64 * s)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens; cols a multiple of 256."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        SUB,
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
