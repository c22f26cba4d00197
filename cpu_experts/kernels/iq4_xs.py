"""IQ4_XS: 256 values in 136 bytes, IQ4_NL's codes with a 6-bit scale per 32 values.

float16 d, uint16 of the scales' high 2 bits, 4 bytes of their low 4 bits, 128 bytes of codes;
weight = d * (scale - 32) * CODEBOOK[code]. In a sub-block's 16 bytes low nibbles are values 0-15.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import jitable
from cpu_experts.kernels.iq4_nl import CODEBOOK, code_table, code_values, fill_codes
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.scaled import rows_scaled
from cpu_experts.kernels.tile_code import PANEL_SCALES, quads, tile_products
from cpu_experts.kernels.tiles import tiles
from cpu_experts.memory import load_f16, load_i32, load_u8, load_u16, store_f32, store_i8
from cpu_experts.row_vectors import splat_f16_256
from cpu_experts.vectors import (
    bytes_to_floats,
    deposit_bits,
    fma,
    halves_to_floats,
    mask_lanes,
    multiply,
    multiply256,
    or_,
    shift_right_by,
    splat_float,
    splat_float256,
    store_floats,
    to_floats,
)

BLOCK, BYTES, SUB = 256, 136, 32


@jitable
def unpack(block, values, scales, minima):
    """The block as 256 int8 values, 8 scales and minima of 0."""
    d = load_f16(block)
    high = load_u16(block + 2)
    for s in range(8):
        low = load_u8(block + 4 + s // 2) >> (s % 2 * 4) & 15
        scale = (low | (high >> (2 * s) & 3) << 4) - 32
        store_f32(scales + 4 * s, d * np.float32(scale))
        store_f32(minima + 4 * s, 0.0)
        for i in range(16):
            packed = load_u8(block + 8 + 16 * s + i)
            store_i8(values + 32 * s + i, CODEBOOK[packed & 15])
            store_i8(values + 32 * s + 16 + i, CODEBOOK[packed >> 4])


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
_SCALES = bytes_to_floats(32)


@jitable
def unpack_vectors(block):
    """256 weights plus 128 as bytes, scales, and corrections that take the 128 off."""
    u0 = code_values(block + 8, block + 24)
    u1 = code_values(block + 40, block + 56)
    u2 = code_values(block + 72, block + 88)
    u3 = code_values(block + 104, block + 120)
    d = _unpack_scales(block)
    return u0, u1, u2, u3, d, multiply256(d, splat_float256(-128.0))


@jitable
def _unpack_scales(block):
    """The 8 scales of a block as float32."""
    low = deposit_bits(load_i32(block + 4) & 0xFFFFFFFF, 0x0F0F0F0F0F0F0F0F)
    high = deposit_bits(load_u16(block + 2), 0x0303030303030303)
    return multiply256(_SCALES(low | high << 4), splat_f16_256(block))


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
_FOUR, _TOP = mask_lanes(15), mask_lanes(0x30)

_BIG, _SMALL = tile_products(32)


@jitable
def fill_panel(block, stride, panel):
    """A superblock of 16 rows as a panel (tiles.py)."""
    table = code_table()
    for s in range(8):
        a, b, c, d = quads(block + 8 + 16 * s, stride)
        fill_codes(table, a, panel + 512 * s)
        fill_codes(table, b, panel + 512 * s + 64)
        fill_codes(table, c, panel + 512 * s + 128)
        fill_codes(table, d, panel + 512 * s + 192)
    heads = quads(block, stride)
    d = halves_to_floats(heads[0])
    less = multiply(d, splat_float(np.float32(-32.0)))
    for s in range(8):
        # The high two bits of scale s are bits 16 + 2s and 17 + 2s of the first dword.
        low, high = shift_right_by(heads[1], 4 * s), shift_right_by(heads[0], 12 + 2 * s)
        scale = to_floats(or_(_FOUR(low), _TOP(high)))
        store_floats(fma(scale, d, less), panel + PANEL_SCALES + 64 * s)


def tiles_avx512_vnni(w, stride, row0, n_rows, cols, aux, acts, n_tokens, out, out_stride, scratch):
    """out[t, r] = row r . activation t, for many tokens."""
    tiles(
        fill_panel,
        _BIG,
        _SMALL,
        BLOCK,
        BYTES,
        32,
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
