"""Q8_0: 32 values in 34 bytes: float16 d, int8 q[32]; weight = d * q."""

from __future__ import annotations

from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_i8, store_f32, store_i8
from cpu_experts.row_vectors import strided_halves
from cpu_experts.vectors import (
    flip_bytes,
    halves_to_floats,
    load_halves,
    multiply256,
    splat_float256,
    store,
    store_floats,
)

BLOCK, BYTES, SUB = 32, 34, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and a minimum of 0."""
    store_f32(scales, load_f16(block))
    store_f32(minima, 0.0)
    for i in range(32):
        store_i8(values + i, load_i8(block + 2 + i))


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
_UNSIGNED = flip_bytes(128)

_HALVES = strided_halves(BYTES)


@jitable
def unpack_vectors(blocks):
    """8 blocks: weights plus 128 as bytes, scales, and corrections that take the 128 off."""
    u0 = _UNSIGNED(load_halves(blocks + 2, blocks + 36))
    u1 = _UNSIGNED(load_halves(blocks + 70, blocks + 104))
    u2 = _UNSIGNED(load_halves(blocks + 138, blocks + 172))
    u3 = _UNSIGNED(load_halves(blocks + 206, blocks + 240))
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
_BIG, _SMALL = tile_products(32, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    for piece in range(16):
        quants = block + piece // 2 * BYTES + 2 + 16 * (piece % 2)
        a, b, c, d = quads(quants, stride)
        place = panel + 256 * piece
        store(_UNSIGNED(a), place)
        store(_UNSIGNED(b), place + 64)
        store(_UNSIGNED(c), place + 128)
        store(_UNSIGNED(d), place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)


@jitable
def fill_block_scales(n_bytes, block, stride, target):
    """The float16 at the start of each of 8 blocks, of every row."""
    for s in range(8):
        heads = quads(block + s * n_bytes, stride)
        store_floats(halves_to_floats(heads[0]), target + 64 * s)


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
