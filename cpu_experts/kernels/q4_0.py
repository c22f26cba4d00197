"""Q4_0: 32 values in 18 bytes: float16 d, 16 bytes of nibbles (low: 0-15, high: 16-31).

weight = d * (q - 8).
"""

from __future__ import annotations

from cpu_experts.bits import move_bits
from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q8_0 import fill_block_scales
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import strided_halves
from cpu_experts.vectors import (
    load_doubled16,
    mask_bytes,
    multiply256,
    shift_right16,
    splat_float256,
    store,
)

BLOCK, BYTES, SUB = 32, 18, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and a minimum of 0."""
    store_f32(scales, load_f16(block))
    store_f32(minima, 0.0)
    for i in range(16):
        packed = load_u8(block + 2 + i)
        store_i8(values + i, (packed & 15) - 8)
        store_i8(values + 16 + i, (packed >> 4) - 8)


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
_NIBBLES = move_bits(0, 4, 0, 4, mask=15)  # 16 bytes twice: low nibbles, then high ones
_LOW = mask_bytes(15)


@jitable
def nibbles(first, second):
    """The 32 + 32 values of two runs of 16 bytes."""
    return _NIBBLES(load_doubled16(first, second))


_HALVES = strided_halves(BYTES)


@jitable
def unpack_vectors(blocks):
    """8 blocks: weights plus 8 as bytes, scales, and corrections that take the 8 off."""
    u0 = nibbles(blocks + 2, blocks + 20)
    u1 = nibbles(blocks + 38, blocks + 56)
    u2 = nibbles(blocks + 74, blocks + 92)
    u3 = nibbles(blocks + 110, blocks + 128)
    d = _HALVES(blocks)
    return u0, u1, u2, u3, d, multiply256(d, splat_float256(-8.0))


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
_DOWN = shift_right16(4, 4, 4, 4)

_BIG, _SMALL = tile_products(32, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for s in range(8):
        a, b, c, d = quads(block + s * BYTES + 2, stride)
        place = panel + 512 * s
        fill_nibbles(a, place)
        fill_nibbles(b, place + 64)
        fill_nibbles(c, place + 128)
        fill_nibbles(d, place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)


@jitable
def fill_nibbles(both, place):
    """One quad of values 0-15, and one of values 16-31."""
    store(_LOW(both), place)
    store(_LOW(_DOWN(both)), place + 256)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens; cols a multiple of 256."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        SUB,
        8,
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
