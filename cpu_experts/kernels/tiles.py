"""The avx512_vnni tier for many tokens: tiles of 32 rows x 8 (or 6) tokens x 256 values.

For each superblock of columns the activations are packed, 384 bytes a token: 256 int8, 16 numbers
that stand for the sums of the sub-blocks (int32 `offset * sum` where the dot products start, or
float32 `-scale * sum` for formats with minima), float32 scales. Weights become panels of 16 rows:
64 vectors of one quad (4 values) of every row, 16 vectors of scales, 16 of minima. A format brings
`fill_panel(block, stride, last, panel, tmp)`, which writes one from native blocks. Sums are kept
for 256 rows x 128 tokens.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_experts.kernels.tile_code import ACT_BYTES, ACT_SCALES, ACT_SUMS, PANEL_BYTES
from cpu_experts.layout import scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import (
    load_f32,
    load_i16,
    load_i64,
    prefetch,
    store_f32,
    store_i32,
)
from cpu_experts.vectors import load, store, store_floats, zero, zero_floats

TOKEN_TILE, ROW_TILE = 128, 256
# Tokens of a tile, by the size of a sub-block: as many sums as stay in registers.
BIG32, BIG16 = 8, 6
# In scratch: two panels, room to transpose in, packed activations, all sums.
_TMP = 2 * PANEL_BYTES
_ACTS = _TMP + 8192
_SUMS = _ACTS + (TOKEN_TILE + 8) * ACT_BYTES
_STRIDE = ROW_TILE * 4 + 64  # not a power of two: tokens would meet in the same cache sets


@njit(error_model="numpy")
def _pack(block, sub, offset, cols, b, acts, n, packed):
    """Superblock b of n activations, then zeros to fill a tile. `offset` 0: there are minima."""
    sums = sums16_offset(cols, block) if sub == 16 else sums32_offset(cols, block)
    n_sub, per = 256 // sub, 256 // block
    for t in range(n):
        act, out = load_i64(acts + 8 * t), packed + t * ACT_BYTES
        for i in range(0, 256, 64):
            store(load(act + 256 * b + i), out + i)
        for s in range(per):
            store_f32(
                out + ACT_SCALES + 4 * s, load_f32(act + scales_offset(cols) + 4 * (b * per + s))
            )
        for s in range(n_sub):
            total = load_i16(act + sums + 2 * (b * n_sub + s))
            if offset:
                store_i32(out + ACT_SUMS + 4 * s, np.int32(-offset * total))
            elif per == 1:
                # The tile multiplies by the token's scale at the end.
                store_f32(out + ACT_SUMS + 4 * s, -np.float32(total))
            else:
                scale = load_f32(out + ACT_SCALES + 4 * s)
                store_f32(out + ACT_SUMS + 4 * s, -scale * np.float32(total))
    for t in range(n, n + 7):
        for i in range(0, ACT_BYTES, 64):
            store(zero(), packed + t * ACT_BYTES + i)


@njit(error_model="numpy")
def _prefetch_panel(block, stride, last, n_bytes):
    """The next superblock of 16 rows."""
    for r in range(min(16, last + 1)):
        for line in range(0, n_bytes + 63, 64):
            prefetch(block + r * stride + n_bytes + line)


@njit(error_model="numpy")
def _multiply(big, small, sub, n, tmp, sums):
    """The two panels against n packed activations, in tiles as big as they come."""
    step, t = BIG32 if sub == 32 else BIG16, 0
    while t < n:
        if n - t > step // 2:
            big(tmp, tmp + _ACTS + t * ACT_BYTES, (sums + t * _STRIDE, _STRIDE))
            t += step
        else:
            small(tmp, tmp + _ACTS + t * ACT_BYTES, (sums + t * _STRIDE, _STRIDE))
            t += step // 2


@njit(error_model="numpy")
def _one_tile(
    fill_panel, big, small, block, n_bytes, sub, offset, start, stride, n_rows, cols, acts, n, tmp
):
    """Sums of up to 256 rows x 128 tokens, at tmp + _SUMS."""
    group = n_bytes * 256 // block
    for i in range(0, (n + 7) * _STRIDE, 64):
        store_floats(zero_floats(), tmp + _SUMS + i)
    for b in range(cols // 256):
        _pack(block, sub, offset, cols, b, acts, n, tmp + _ACTS)
        for r in range(0, n_rows, 32):
            for panel in range(2):
                row = min(r + 16 * panel, n_rows - 1)
                place, last = start + row * stride + b * group, min(15, n_rows - 1 - row)
                _prefetch_panel(place, stride, last, group)
                fill_panel(place, stride, last, tmp + panel * PANEL_BYTES, tmp + _TMP)
            _multiply(big, small, sub, n, tmp, tmp + _SUMS + 4 * r)


@njit(error_model="numpy")
def tiles(
    fill_panel,
    big,
    small,
    block,
    n_bytes,
    sub,
    offset,
    w,
    stride,
    row0,
    n_rows,
    cols,
    acts,
    n_tokens,
    out,
    out_stride,
    tmp,
):
    """out[t, r] = row r . activation t, for whole 256s of columns."""
    for first in range(0, n_tokens, TOKEN_TILE):
        n = min(TOKEN_TILE, n_tokens - first)
        for top in range(0, n_rows, ROW_TILE):
            rows = min(ROW_TILE, n_rows - top)
            start = w + (row0 + top) * stride
            _one_tile(
                fill_panel,
                big,
                small,
                block,
                n_bytes,
                sub,
                offset,
                start,
                stride,
                rows,
                cols,
                acts + 8 * first,
                n,
                tmp,
            )
            for t in range(n):
                target = out + (first + t) * out_stride + 4 * top
                for r in range(rows):
                    store_f32(target + 4 * r, load_f32(tmp + _SUMS + t * _STRIDE + 4 * r))
