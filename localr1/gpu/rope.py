"""What lies between MLA's projections and its attention, in one launch.

Split the queries into their plain and rotated parts, rotate the latter, norm the latent, rotate the
shared key, and write the cache row. Pairs are interleaved, as in models/rope.py, whose table
`Rope.pairs` (cosine, sine of every position) this reads. The position of the first token comes from
device memory, so that one captured graph serves every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.activations import BLOCK, Integers, store_integers
from localr1.gpu.cache_rows import CacheRows, store_row
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, LatentSizes

_HEADS = 2  # heads of one program


@triton.jit
def turned(values, turns, at, ROPE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """[N, BLOCK] float32, of which ROPE columns count, turned by the angles of position `at`."""
    pair = tl.arange(0, BLOCK // 2)
    there = pair < ROPE // 2
    cosine = tl.load(turns + (at * (ROPE // 2) + pair) * 2, mask=there, other=0.0)[None, :]
    sine = tl.load(turns + (at * (ROPE // 2) + pair) * 2 + 1, mask=there, other=0.0)[None, :]
    a, b = tl.split(tl.reshape(values, [N, BLOCK // 2, 2]))
    return tl.reshape(tl.join(a * cosine - b * sine, b * cosine + a * sine), [N, BLOCK])


@triton.jit
def cache_row(
    kv, norm, turns, rows, scales, token, at, eps,
    RANK: tl.constexpr, ROPE: tl.constexpr, KV_STRIDE: tl.constexpr,
    BLOCK_RANK: tl.constexpr, BLOCK_ROPE: tl.constexpr,
):  # fmt: skip
    """Norm the latent of `token`, rotate its key, write both as row `at` of the cache."""
    column = tl.arange(0, BLOCK_RANK)
    inside = column < RANK
    latent = tl.load(kv + token * KV_STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(latent * latent, 0) / RANK + eps)
    latent = latent * factor * tl.load(norm + column, mask=inside, other=0.0)
    row = rows + at * (RANK + ROPE)
    store_row(row, scales, at, 0, column, inside, latent)
    rotated = tl.arange(0, BLOCK_ROPE)
    inside = rotated < ROPE
    key = tl.load(kv + token * KV_STRIDE + RANK + rotated, mask=inside, other=0.0).to(tl.float32)
    key = turned(tl.reshape(key, [1, BLOCK_ROPE]), turns, at, ROPE, 1, BLOCK_ROPE)
    store_row(row + RANK, scales, at, 1, rotated, inside, tl.reshape(key, [BLOCK_ROPE]))


@triton.jit
def rope_kernel(
    q, kv, norm, turns, position, q_nope, q_rope, words, units, sums, rows, scales, eps,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr,
    KV_STRIDE: tl.constexpr, BLOCK_NOPE: tl.constexpr, BLOCK_ROPE: tl.constexpr,
    BLOCK_RANK: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Token `program_id(0)`: its cache row where `program_id(1)` is 0, else TILE of its heads.

    With `words`, plain parts of 128 values are also made integers.
    """
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = tl.load(position).to(tl.int64) + token
    pdl.relay(PDL)
    if part == 0:
        cache_row(
            kv, norm, turns, rows, scales, token, at, eps,
            RANK, ROPE, KV_STRIDE, BLOCK_RANK, BLOCK_ROPE,
        )  # fmt: skip
    else:
        head = (part - 1) * TILE + tl.arange(0, TILE)[:, None]
        line = token * HEADS + head
        plain, rotated = tl.arange(0, BLOCK_NOPE)[None, :], tl.arange(0, BLOCK_ROPE)[None, :]
        source = q + line * (NOPE + ROPE)
        inside = (head < HEADS) & (plain < NOPE)
        values = tl.load(source + plain, mask=inside, other=0.0)
        tl.store(q_nope + line * NOPE + plain, values.to(q_nope.dtype.element_ty), mask=inside)
        if words is not None:
            block = tl.program_id(0) * HEADS + (part - 1) * TILE + tl.arange(0, TILE)
            there = (part - 1) * TILE + tl.arange(0, TILE) < HEADS
            store_integers(values.to(tl.float32), block, there, words, units, sums)
        inside = (head < HEADS) & (rotated < ROPE)
        values = tl.load(source + NOPE + rotated, mask=inside, other=0.0).to(tl.float32)
        values = turned(values, turns, at, ROPE, TILE, BLOCK_ROPE)
        tl.store(q_rope + line * ROPE + rotated, values.to(q_rope.dtype.element_ty), mask=inside)


def rotate(
    q: torch.Tensor,
    kv: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    turns: torch.Tensor,
    position: torch.Tensor,
    cache: CacheRows,
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    made: Integers | None = None,
) -> None:
    """Write `q_nope` `[T, heads, nope]`, `q_rope` `[T, heads, rope]` (float32 or bf16) and cache
    rows `position ... position + T - 1`; and, if nope is 128, `q_nope` as integers too.

    `q` `[T, heads * (nope + rope)]` contiguous and `kv` `[T, rank + rope]` are float32 or bf16,
    `norm` float32 `[rank]`, `turns` float32 `[context, rope / 2, 2]`, `position` int32 `[1]`.
    The caller sees to it that the rows lie within the cache and the table.
    """
    n_tokens, heads, nope = q_nope.shape
    constants = _constants(heads, nope, q_rope.shape[-1], norm.shape[0])
    grid = (n_tokens, 1 + triton.cdiv(heads, _HEADS))
    launch(
        rope_kernel, grid, q, kv, norm, turns, position, q_nope, q_rope,
        *(made or (None,) * 3)[:3], cache.rows, cache.scales, eps,
        KV_STRIDE=kv.stride(0), **constants,
    )  # fmt: skip


def _constants(heads: int, nope: int, rope: int, rank: int) -> dict[str, Any]:
    return {
        "HEADS": heads,
        "NOPE": nope,
        "ROPE": rope,
        "RANK": rank,
        "BLOCK_NOPE": triton.next_power_of_2(nope),
        "BLOCK_ROPE": triton.next_power_of_2(rope),
        "BLOCK_RANK": triton.next_power_of_2(rank),
        "TILE": _HEADS,
    }


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Projections in float32 or bf16, for decoding (float32 plain queries) and prefill (bf16); the
    latent alone, or beside the queries that are projected with it.
    """
    rank, rope, plain = sizes.kv_lora_rank, sizes.qk_rope_head_dim, sizes.qk_nope_head_dim
    constants = _constants(sizes.n_heads, plain, rope, rank)
    beside = sizes.q_lora_rank or sizes.n_heads * (plain + rope)
    kinds = (("*fp32", "*fp32"), ("*fp32", "*bf16"), ("*bf16", "*bf16"))
    for (source, queries), more in product(kinds, (0, beside)):
        signature = {
            **{"q": source, "kv": source, "norm": "*fp32", "turns": "*fp32", "eps": "fp32"},
            **{"position": "*i32", "q_nope": queries, "q_rope": "*bf16"},
        }
        shape = constants | {"KV_STRIDE": rank + rope + more}
        pointers = {"words": "*i32", "units": "*fp32", "sums": "*i32"}
        if plain == BLOCK and queries == "*fp32":
            signature |= pointers
        else:
            shape |= dict.fromkeys(pointers)
        bf16, fp8 = {"rows": "*bf16"}, {"rows": "*u8", "scales": "*fp32"}
        yield Configuration(rope_kernel, signature | bf16, shape | {"scales": None}, 4, 2)
        yield Configuration(rope_kernel, signature | fp8, shape, 4, 2)
