"""Grouped-query attention for prompts: many tokens over a cache in bf16 or int8, causal, in
one pass.

As gqa.py, the query heads of a key head are rows of one tile; each tile reads all keys up to its
last token's, so nothing is split and nothing joined.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu.attention import LOG2_E, Tile, operand
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.gqa import KINDS, attended, constants, queries_of
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import DISTILL_7B, GroupedSizes


@triton.jit
def prefill_kernel(
    q, rows, scales, out, n_tokens, start, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, FLOAT_DOT: tl.constexpr,
):  # fmt: skip
    """Tile `program_id(0)`, counted from the last, of the queries of key head `program_id(1)`.

    The last tiles have the most keys: they begin first.
    """
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    token, line = queries_of(tile, head, HEADS // KV_HEADS, HEADS, ROWS)
    real, column = token < n_tokens, tl.arange(0, BLOCK)
    queries = operand(q, line * DIM, real, column, DIM, FLOAT_DOT)
    end = start + tl.minimum(((tile + 1) * ROWS - 1) // (HEADS // KV_HEADS) + 1, n_tokens)
    answer, _ = attended(
        queries, rows, scales, head, 0, end, start + token, scale,
        KV_HEADS, DIM, BLOCK, ROWS, KEYS, FLOAT_DOT,
    )  # fmt: skip
    mask = real[:, None] & (column < DIM)[None, :]
    tl.store(out + line[:, None] * DIM + column[None, :], answer, mask=mask)


def attend(q: torch.Tensor, cache: CacheRows, start: int, scale: float, arch: int) -> torch.Tensor:
    """Queries `[T, heads, head_dim]` bf16 at positions `start ...` over the cache rows (see
    gqa.attend) up to their own -> float32 `[T, heads, head_dim]`.
    """
    n_tokens, heads, dim = q.shape
    kv_heads, tile = cache.rows.shape[-1] // (2 * dim), tile_for(arch, dim)
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    launch(
        prefill_kernel, (triton.cdiv(n_tokens * (heads // kv_heads), tile.rows), kv_heads),
        q, cache.rows, cache.scales, out, n_tokens, start, scale * LOG2_E,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
        **constants(heads, kv_heads, dim, tile, q.device.type == "cpu"),
    )  # fmt: skip
    return out


def tile_for(arch: int, dim: int) -> Tile:
    """What fits the registers and 99 KiB of shared memory (69 taken); Hopper has more (128)."""
    if dim > 128:
        return Tile(64, 32, 4, 2)
    return Tile(128, 64, 8, 3 if arch == 90 else 2)


def configurations(arch: int, sizes: GroupedSizes = DISTILL_7B) -> Iterator[Configuration]:
    """The one kernel, over caches in bf16 and int8."""
    tile = tile_for(arch, sizes.head_dim)
    signature = {
        **{"q": "*bf16", "out": "*fp32"},
        **{"n_tokens": "i32", "start": "i32", "scale": "fp32"},
    }
    shape = constants(sizes.n_heads, sizes.n_kv_heads, sizes.head_dim, tile, False)
    for rows, held in KINDS:
        yield Configuration(
            prefill_kernel, signature | rows, shape | held, tile.num_warps, tile.num_stages
        )
