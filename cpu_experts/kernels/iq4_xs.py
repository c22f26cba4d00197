"""IQ4_XS: 256 values in 136 bytes, IQ4_NL's codes with a 6-bit scale per 32 values.

float16 d, uint16 of the scales' high 2 bits, 4 bytes of their low 4 bits, 128 bytes of codes;
weight = d * (scale - 32) * CODEBOOK[code]. In a sub-block's 16 bytes low nibbles are values 0-15.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from cpu_experts.kernels.iq4_nl import CODEBOOK, code_table, code_values
from cpu_experts.kernels.portable import dequantise, rows_quantised
from cpu_experts.kernels.tile_code import PANEL_SCALES, tile_product, transpose_pieces
from cpu_experts.kernels.tiles import tiles
from cpu_experts.kernels.vnni import rows_scaled
from cpu_experts.memory import load_f16, load_i32, load_u8, load_u16, store_f32, store_i8
from cpu_experts.vectors import (
    bytes_to_floats,
    deposit_bits,
    load,
    look_up_bytes,
    mask_bytes,
    multiply256,
    shift_right16,
    splat_float256,
    store,
    store_floats256,
)
from cpu_experts.vectors import (
    load_f16 as load_half,
)

BLOCK, BYTES, SUB = 256, 136, 32


@register_jitable
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


@register_jitable
def unpack_vectors(block):
    """256 weights plus 128 as bytes, scales, and corrections that take the 128 off."""
    u0 = code_values(block + 8, block + 24)
    u1 = code_values(block + 40, block + 56)
    u2 = code_values(block + 72, block + 88)
    u3 = code_values(block + 104, block + 120)
    d = _unpack_scales(block)
    return u0, u1, u2, u3, d, multiply256(d, splat_float256(-128.0))


@register_jitable
def _unpack_scales(block):
    """The 8 scales of a block as float32."""
    low = deposit_bits(load_i32(block + 4) & 0xFFFFFFFF, 0x0F0F0F0F0F0F0F0F)
    high = deposit_bits(load_u16(block + 2), 0x0303030303030303)
    return multiply256(_SCALES(low | high << 4), splat_float256(load_half(block)))


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
_TRANSPOSE = transpose_pieces(1, 0)
_LOW, _DOWN = mask_bytes(15), shift_right16(4, 4, 4, 4)

_BIG, _SMALL = (tile_product(n, 32, minima=False, narrow=False) for n in (8, 4))


@register_jitable
def fill_panel(block, stride, last, panel, tmp):
    """16 rows of a superblock, `last` the last one's index, as a panel (tiles.py)."""
    _TRANSPOSE(block + 8, stride, (last, tmp))
    _TRANSPOSE(block + 72, stride, (last, tmp + 1024))
    table = code_table()
    for j in range(32):
        codes, place = load(tmp + 64 * j), panel + 64 * (8 * (j // 4) + j % 4)
        store(look_up_bytes(table, _LOW(codes)), place)
        store(look_up_bytes(table, _LOW(_DOWN(codes))), place + 256)
    for r in range(16):
        store_floats256(_unpack_scales(block + min(r, last) * stride), tmp + 64 * r)
    _TRANSPOSE(tmp, 64, (15, tmp + 1024))
    for s in range(8):
        store(load(tmp + 1024 + 64 * s), panel + PANEL_SCALES + 64 * s)


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
