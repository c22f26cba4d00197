"""The avx512_vnni tier for many tokens: tiles of 32 rows x 6 tokens x 256 values.

Weights become panels of 16 rows: 64 vectors of one quad (4 values) of every row, then scales,
minima and factors, a row per lane. A format brings `fill_panel(block, stride, panel)`, which
writes one from native blocks. A panel meets up to 256 tokens, so that filling it costs little.

The int8 values of activations are read where they are. Beside them, for each superblock of
columns, 128 bytes a token are packed: what stands for the sums of the sub-blocks, then float32
scales. The sums are int32 `-offset * sum` where the dot products start, those of 32 values float32
too; with minima alone pairs of int16, or float32 `-scale * sum` for blocks of 32. `_NEAR`
superblocks of activations are met by all rows before the next ones: few tokens read whole rows,
many tokens four superblocks of 256 rows.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import inner, jitable
from cpu_experts.kernels.tile_code import (
    BIG,
    PACKED_BYTES,
    PACKED_FLOATS,
    PACKED_SCALES,
    PANEL_BYTES,
    SMALL,
    SUMS_BYTES,
)
from cpu_experts.layout import scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import (
    load_f32,
    load_i64,
    load_u8,
    prefetch,
    prefetch_stream,
    store_f32,
    store_i8,
    store_i64,
)
from cpu_experts.vectors import (
    bytes_constant,
    load256,
    load_floats,
    look_up_bytes,
    multiply,
    multiply_words,
    splat_float,
    store,
    store256,
    store_floats,
    to_floats,
    words_as_lanes,
    zero_floats,
)

TOKEN_TILE, ROW_TILE = 256, 256
# Superblocks of activations, of all tokens together, that stay in the second cache.
_NEAR = 1024
_LATER = 8  # rows of activations between one that is packed and one whose sums are fetched
# In scratch, in its first half MiB: two panels, 16 rows copied, addresses of activations, what is
# packed of them, all sums.
_ROWS = 2 * PANEL_BYTES
_TABLE = _ROWS + 4608
_PACKED = _TABLE + 8 * (TOKEN_TILE + 16) + 64
_SUMS = _PACKED + _NEAR * PACKED_BYTES
_PAIR01, _PAIR23 = (
    bytes_constant([v for lane in range(0, 16, 4) for v in (lane + i, 128, lane + i + 1, 128)] * 4)
    for i in (0, 2)
)


@jitable
def fill_pairs(packed, target):
    """Minima of a panel: four bytes of every row as two vectors of int16 pairs."""
    store(look_up_bytes(packed, _PAIR01()), target)
    store(look_up_bytes(packed, _PAIR23()), target + 64)


@inner
def _pack(block, sub, offset, cols, b, act, out):
    """Sums and scales of superblock b of an activation. `offset` 0: there are minima."""
    # Loads of what comes in a row behind fewer scales or sums: see layout.py.
    scales = load_floats(act + scales_offset(cols) + 1024 * b // block)
    sums = sums16_offset(cols, block) if sub == 16 else sums32_offset(cols, block)
    words = load256(act + sums + 512 * b // sub)
    if offset:
        store(multiply_words(words_as_lanes(words), np.int32(-offset)), out)
        if sub == 32:
            store_floats(to_floats(words_as_lanes(words)), out + PACKED_FLOATS)
    elif block == 32:
        totals = multiply(to_floats(words_as_lanes(words)), splat_float(np.float32(-1.0)))
        store_floats(multiply(totals, scales), out)
    else:
        store256(words, out)
    store_floats(scales, out + PACKED_SCALES)


@inner
def _prefetch(start, end):
    for line in range(start, end, 64):
        prefetch(line)


@inner
def _pack_all(block, sub, offset, cols, first, last, table, n, packed):
    """Superblocks first..last of n activations: for each superblock those of all.

    What lies beside the values of rows that come later is fetched: it is in few lines of each.
    """
    scales = scales_offset(cols)
    sums = sums16_offset(cols, block) if sub == 16 else sums32_offset(cols, block)
    for t in range(n):
        act, later = load_i64(table + 8 * t), load_i64(table + 8 * (t + _LATER))
        _prefetch(later + scales + 1024 * first // block, later + scales + 1024 * last // block)
        _prefetch(later + sums + 512 * first // sub, later + sums + 512 * last // sub)
        for b in range(first, last):
            target = packed + ((b - first) * n + t) * PACKED_BYTES
            _pack(block, sub, offset, cols, b, act, target)


@inner(inline="always")
def _multiply(big, small, n, tmp, column, packed, sums, ahead, stride, n_ahead, n_bytes):
    """The two panels against n activations, an even number and at least 4.

    Between tiles, some of the `n_ahead` rows at `ahead` are fetched: all at once would fill the
    core's buffers for missing lines, and it would wait.
    """
    sixes = n - SMALL * (-(n // 2) % 3)  # what is left behind them, fours meet
    row, t = 0, 0
    per = n_ahead * BIG // n + 1
    while t < n:
        for r in range(row, min(row + per, n_ahead)):
            for line in range(0, n_bytes, 64):
                prefetch_stream(ahead + r * stride + line)
        row += per
        table, acts, target = tmp + _TABLE + 8 * t, packed + t * PACKED_BYTES, sums + t * SUMS_BYTES
        if t < sixes:
            big(tmp, table, column, acts, target)
            t += BIG
        else:
            small(tmp, table, column, acts, target)
            t += SMALL


@inner
def _copy_rows(block, stride, n, n_bytes, target):
    """A superblock of n rows, and the last one again until they are 16."""
    for r in range(16):
        source = block + min(r, n - 1) * stride
        for i in range(n_bytes):
            store_i8(target + r * n_bytes + i, load_u8(source + i))


@inner(inline="always")
def _one_tile(
    fill_panel, big, small, block, n_bytes, sub, offset, start, stride, n_rows, cols, n, tmp
):
    """Sums of up to 256 rows x 256 tokens at tmp + _SUMS: for each 32 rows, 32 of every token."""
    group, blocks = n_bytes * 256 // block, cols // 256
    for i in range(0, (n_rows + 31) // 32 * n * SUMS_BYTES, 64):
        store_floats(zero_floats(), tmp + _SUMS + i)
    step = max(1, _NEAR // n)
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        _pack_all(block, sub, offset, cols, first, last, tmp + _TABLE, n, tmp + _PACKED)
        for r in range(0, n_rows, 32):
            sums = tmp + _SUMS + r // 32 * n * SUMS_BYTES
            here = start + r * stride
            for b in range(first, last):
                for panel in range(2):
                    place, step_rows = here + 16 * panel * stride + b * group, stride
                    if r + 16 * panel + 16 > n_rows:
                        row = min(16 * panel, n_rows - 1 - r)
                        place = here + row * stride + b * group
                        _copy_rows(place, stride, n_rows - r - row, group, tmp + _ROWS)
                        place, step_rows = tmp + _ROWS, group
                    fill_panel(place, step_rows, tmp + panel * PANEL_BYTES)
                packed = tmp + _PACKED + (b - first) * n * PACKED_BYTES
                ahead, n_ahead = here + (b + 1) * group, min(32, n_rows - r)
                if b + 1 == last and r + 32 < n_rows:
                    ahead, n_ahead = here + 32 * stride + first * group, min(32, n_rows - r - 32)
                _multiply(big, small, n, tmp, 256 * b, packed, sums, ahead, stride, n_ahead, group)


@inner
def _list_rows(acts, n, table):
    """Addresses of n activations, then of the last one: for whole tiles, and for their fetching.

    Returns how many tokens whole tiles hold.
    """
    for t in range(n + 16):
        store_i64(table + 8 * t, load_i64(acts + 8 * min(t, n - 1)))
    return max(SMALL, (n + 1) // 2 * 2)


@inner
def _copy_out(sums, n_rows, whole, n, out, out_stride):
    """The sums of all groups of 32 rows, to where the caller wants them."""
    for t in range(n):
        for r in range(0, n_rows, 32):
            source = sums + (r // 32 * whole + t) * SUMS_BYTES
            target = out + t * out_stride + 4 * r
            if r + 32 <= n_rows:
                store_floats(load_floats(source), target)
                store_floats(load_floats(source + 64), target + 64)
            else:
                for i in range(n_rows - r):
                    store_f32(target + 4 * i, load_f32(source + 4 * i))


@inner(inline="always")
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
        whole = _list_rows(acts + 8 * first, n, tmp + _TABLE)
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
                whole,
                tmp,
            )
            target = out + first * out_stride + 4 * top
            _copy_out(tmp + _SUMS, rows, whole, n, target, out_stride)
