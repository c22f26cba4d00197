"""Q5_1: 32 values in 24 bytes: float16 d, float16 m, 32 high bits, 16 bytes of low nibbles.

weight = d * q + m; value i has bit i of the high word.
"""

from __future__ import annotations

from cpu_experts.cache import jitable
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.q4_1 import fill_block_minima
from cpu_experts.kernels.q5_0 import fifth_bits, fill_5_bits, values_of_5_bits
from cpu_experts.kernels.q8_0 import fill_block_scales
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_MINIMA, PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_i32, load_u8, store_f32, store_i8
from cpu_experts.row_vectors import even_floats, odd_floats, strided_pairs

BLOCK, BYTES, SUB = 32, 24, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 32 int8 values, one scale and one minimum (-m)."""
    store_f32(scales, load_f16(block))
    store_f32(minima, -load_f16(block + 2))
    high = load_i32(block + 4)
    for i in range(16):
        packed = load_u8(block + 8 + i)
        store_i8(values + i, (packed & 15) | (high >> i & 1) << 4)
        store_i8(values + 16 + i, packed >> 4 | (high >> (i + 16) & 1) << 4)


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
    u0 = values_of_5_bits(blocks + 8, blocks + 32)
    u1 = values_of_5_bits(blocks + 56, blocks + 80)
    u2 = values_of_5_bits(blocks + 104, blocks + 128)
    u3 = values_of_5_bits(blocks + 152, blocks + 176)
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
_BIG, _SMALL = tile_products(32, minima=True, narrow=True)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    table = fifth_bits()
    for s in range(8):
        quants = block + s * BYTES + 8
        high = quads(quants - 4, stride)[0]
        a, b, c, d = quads(quants, stride)
        place = panel + 512 * s
        fill_5_bits(table, high, 0, a, place)
        fill_5_bits(table, high, 4, b, place + 64)
        fill_5_bits(table, high, 8, c, place + 128)
        fill_5_bits(table, high, 12, d, place + 192)
    fill_block_scales(BYTES, block, stride, panel + PANEL_SCALES)
    fill_block_minima(BYTES, block, stride, panel + PANEL_MINIMA)


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
