"""Grouped-query attention for decoding: up to 8 tokens over a cache in bf16 or int8.

A row of the cache is a token's `[keys of every key head | values of every key head]`. The query
heads that share a key head are rows of one tile, `[token][query head]`, so keys and values are read
from memory once for all of them. The keys are cut into `splits` shares that run side by side
(splits.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.activations import Integers
from localr1.gpu.attention import LOG2_E, Tile, operand, padded, softmax_step
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import DISTILL_7B, GroupedSizes
from localr1.gpu.splits import combine, combining, share_of, spread
from localr1.gpu.tiles import FEW

# What the cache adds to a signature and to the constants: in bf16, in int8.
KINDS: tuple[tuple[dict[str, str], dict[str, None]], ...] = (
    ({"rows": "*bf16"}, {"scales": None}),
    ({"rows": "*i8", "scales": "*fp32"}, {}),
)


@triton.jit
def queries_of(tile, head, GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Rows of `tile` of key head `head`: the token of each, and its line of q [T * HEADS, DIM]."""
    row = tile * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    return token, token.to(tl.int64) * HEADS + head * GROUP + row % GROUP


@triton.jit
def int8_operand(source, offset, inside, columns, SIZE: tl.constexpr, FLOAT_DOT: tl.constexpr):
    """As `operand`, of int8 values, which bf16 holds exactly."""
    mask = inside[:, None] & (columns < SIZE)[None, :]
    tile = tl.load(source + offset[:, None] + columns[None, :], mask=mask, other=0).to(tl.float32)
    return tile if FLOAT_DOT else tile.to(tl.bfloat16)


@triton.jit
def attended(
    queries, rows, scales, head, first, end, last, scale,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, FLOAT_DOT: tl.constexpr,
):  # fmt: skip
    """Queries [ROWS, BLOCK] over the keys `first` to `end` of key head `head`, each up to position
    `last` [ROWS] -> their answers [ROWS, BLOCK], and the logarithms (base 2) of the weights behind
    them: -inf where a row sees none of these keys.
    """
    column = tl.arange(0, BLOCK)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for at in range(first, end, KEYS):
        key = at + tl.arange(0, KEYS)
        inside = key < end
        part = key.to(tl.int64) * (2 * KV_HEADS) + head
        if scales is None:
            keys = operand(rows, part * DIM, inside, column, DIM, FLOAT_DOT)
            values = operand(rows, (part + KV_HEADS) * DIM, inside, column, DIM, FLOAT_DOT)
            value_scale = None
            scores = tl.dot(queries, tl.trans(keys)) * scale
        else:
            keys = int8_operand(rows, part * DIM, inside, column, DIM, FLOAT_DOT)
            values = int8_operand(rows, (part + KV_HEADS) * DIM, inside, column, DIM, FLOAT_DOT)
            key_scale = tl.load(scales + part, mask=inside, other=0.0) * scale
            value_scale = tl.load(scales + part + KV_HEADS, mask=inside, other=0.0)
            scores = tl.dot(queries, tl.trans(keys)) * key_scale[None, :]
        seen = inside[None, :] & (key[None, :] <= last[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        peak, total, acc = softmax_step(scores, values, value_scale, peak, total, acc, FLOAT_DOT)
    weight = tl.where(total == 0, 1.0, total)
    return acc / weight[:, None], peak + tl.log2(weight)


@triton.jit
def partial_kernel(
    q, rows, scales, position, sums, peaks, n_tokens, splits, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, FLOAT_DOT: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Tile `program_id(0)` of the queries of key head `program_id(2)` over split `program_id(1)`.

    sums [T * HEADS, splits, DIM] are the answers, peaks [T * HEADS, splits] the logarithms of their
    weights.
    """
    split, head, start = tl.program_id(1), tl.program_id(2), tl.load(position)
    length = start + n_tokens
    share = share_of(length, splits, KEYS)
    first = split * share
    end = tl.minimum(first + share, length)
    pdl.relay(PDL)
    if first >= end:
        return
    token, line = queries_of(tl.program_id(0), head, HEADS // KV_HEADS, HEADS, ROWS)
    real, column = token < n_tokens, tl.arange(0, BLOCK)
    queries = operand(q, line * DIM, real, column, DIM, FLOAT_DOT)
    answer, peak = attended(
        queries, rows, scales, head, first, end, start + token, scale,
        KV_HEADS, DIM, BLOCK, ROWS, KEYS, FLOAT_DOT,
    )  # fmt: skip
    out = line * splits + split
    tl.store(peaks + out, peak, mask=real)
    mask = real[:, None] & (column < DIM)[None, :]
    tl.store(sums + out[:, None] * DIM + column[None, :], answer, mask=mask)


def attend(
    q: torch.Tensor,
    cache: CacheRows,
    position: torch.Tensor,
    scale: float,
    splits: int,
    out: torch.Tensor | None = None,
    made: Integers | None = None,
) -> torch.Tensor:
    """Queries `[T, heads, head_dim]` bf16 at positions `position ...` over the cache rows
    `[S, 2 * key heads * head_dim]` up to their own -> `[T, heads, head_dim]`, float32 if `out` is
    not given.

    `position` int32 `[1]`; `scale` is the softmax's; `splits` from `splits_for`; `made` is filled
    with the same as integers (splits.combine).
    """
    n_tokens, heads, dim = q.shape
    kv_heads, device = cache.rows.shape[-1] // (2 * dim), q.device
    if out is None:
        out = torch.empty(q.shape, dtype=torch.float32, device=device)
    sums = torch.empty(n_tokens * heads, splits, dim, dtype=torch.float32, device=device)
    peaks = torch.empty(n_tokens * heads, splits, dtype=torch.float32, device=device)
    n_rows = n_tokens * (heads // kv_heads)
    tile = tile_for(n_rows)
    launch(
        partial_kernel, (triton.cdiv(n_rows, tile.rows), splits, kv_heads),
        q, cache.rows, cache.scales, position, sums, peaks, n_tokens, splits, scale * LOG2_E,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
        **constants(heads, kv_heads, dim, tile, device.type == "cpu"),
    )  # fmt: skip
    combine(sums, peaks, position, tile.keys, out, made)
    return out


def tile_for(n_rows: int) -> Tile:
    """So many keys that 4,000 are one tile each for every split, so few that short contexts are
    spread widely. In one stage: many programs beside each other hide what memory takes, and all of
    a tile's keys and values are asked for at once.
    """
    return Tile(16 if n_rows <= 16 else 32, 64, 4, 1)


def splits_for(n_rows: int, kv_heads: int, multiprocessors: int) -> int:
    """As many splits as give every multiprocessor two programs."""
    return spread(kv_heads * triton.cdiv(n_rows, 16 if n_rows <= 16 else 32), 2 * multiprocessors)


def constants(heads: int, kv_heads: int, dim: int, tile: Tile, float_dot: bool) -> dict[str, Any]:
    """The constants of `partial_kernel` and of `prefill_kernel`."""
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "DIM": dim,
        "BLOCK": padded(dim),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "FLOAT_DOT": float_dot,
    }


def configurations(arch: int, sizes: GroupedSizes = DISTILL_7B) -> Iterator[Configuration]:
    """Both kernels, for one token and for several, over caches in bf16 and int8."""
    heads, kv_heads, dim = sizes.n_heads, sizes.n_kv_heads, sizes.head_dim
    signature = {
        **{"q": "*bf16", "position": "*i32", "sums": "*fp32", "peaks": "*fp32"},
        **{"n_tokens": "i32", "splits": "i32", "scale": "fp32"},
    }
    tiles = {tile_for(n * (heads // kv_heads)) for n in range(1, FEW + 1)}
    for tile, (rows, held) in product(tiles, KINDS):
        shape = constants(heads, kv_heads, dim, tile, False) | held
        yield Configuration(
            partial_kernel, signature | rows, shape, tile.num_warps, tile.num_stages
        )
    yield from combining(dim, {tile.keys for tile in tiles})
