"""IQ4_NL: 32 values in 18 bytes: float16 d, 16 bytes of 4-bit codes into a table of 16.

Low nibbles are values 0-15, high ones 16-31; weight = d * CODEBOOK[code].
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
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import strided_halves
from cpu_experts.vectors import (
    bytes_constant,
    look_up_bytes,
    mask_bytes,
    multiply256,
    shift_right16,
    splat_float256,
    store,
)

BLOCK, BYTES, SUB = 32, 18, 32


# The 16 values of the non-linear code, as the format's authors fixed them.
CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and a minimum of 0."""
    store_f32(scales, load_f16(block))
    store_f32(minima, 0.0)
    for i in range(16):
        packed = load_u8(block + 2 + i)
        store_i8(values + i, CODEBOOK[packed & 15])
        store_i8(values + 16 + i, CODEBOOK[packed >> 4])


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
# An operation: the code book plus 128, in every 128 bits.
code_table = bytes_constant([int(value) + 128 for value in CODEBOOK] * 4)


@jitable
def code_values(first, second):
    """The 64 values of two runs of 16 bytes of codes, plus 128."""
    return look_up_bytes(code_table(), nibbles(first, second))


_HALVES = strided_halves(BYTES)


@jitable
def unpack_vectors(blocks):
    """8 blocks: weights plus 128 as bytes, scales, and corrections that take the 128 off."""
    u0 = code_values(blocks + 2, blocks + 20)
    u1 = code_values(blocks + 38, blocks + 56)
    u2 = code_values(blocks + 74, blocks + 92)
    u3 = code_values(blocks + 110, blocks + 128)
    d = _HALVES(blocks)
    return u0, u1, u2, u3, d, multiply256(d, splat_float256(-128.0))


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

_BIG, _SMALL = tile_products(32, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    table = code_table()
    for s in range(8):
        a, b, c, d = quads(block + s * BYTES + 2, stride)
        place = panel + 512 * s
        fill_codes(table, a, place)
        fill_codes(table, b, place + 64)
        fill_codes(table, c, place + 128)
        fill_codes(table, d, place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)


@jitable
def fill_codes(table, codes, place):
    """One quad of values 0-15, and one of values 16-31, from their codes."""
    store(look_up_bytes(table, _LOW(codes)), place)
    store(look_up_bytes(table, _LOW(_DOWN(codes))), place + 256)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens; cols a multiple of 256."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        SUB,
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
