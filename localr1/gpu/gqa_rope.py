"""What lies between the projections of grouped-query attention and its attention, in one launch.

Add biases (Qwen2), norm each head's queries and keys (Qwen3), rotate them, and write the cache row.
Pairs lie side by side or a half apart, as in models/rope.py, whose table `Rope.pairs` this reads.
The position of the first token comes from device memory, so that one captured graph serves every
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.cache_rows import CacheRows, to_int8
from localr1.gpu.gqa import KINDS
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import DISTILL_7B, GroupedSizes


@triton.jit
def rope_kernel(
    qkv, bias, norms, turns, position, q, rows, scales, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Token `program_id(0)`, of its heads of queries, keys and values together `program_id(1)`."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.load(position).to(tl.int64) + token
    pdl.relay(PDL)
    pair = tl.arange(0, BLOCK // 2)
    there = pair < DIM // 2
    first = 2 * pair if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else first + DIM // 2
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    a = tl.load(source + first, mask=there, other=0.0)
    b = tl.load(source + second, mask=there, other=0.0)
    if bias is not None:
        a += tl.load(bias + head * DIM + first, mask=there, other=0.0)
        b += tl.load(bias + head * DIM + second, mask=there, other=0.0)
    if head < HEADS + KV_HEADS:
        if norms is not None:
            own = norms + (head >= HEADS).to(tl.int32) * DIM
            factor = tl.rsqrt(tl.sum(a * a + b * b, 0) / DIM + eps)
            a = a * factor * tl.load(own + first, mask=there, other=0.0)
            b = b * factor * tl.load(own + second, mask=there, other=0.0)
        turn = turns + (at * (DIM // 2) + pair) * 2
        cosine = tl.load(turn, mask=there, other=0.0)
        sine = tl.load(turn + 1, mask=there, other=0.0)
        turned = a * cosine - b * sine
        b = b * cosine + a * sine
        a = turned
    part = at * (2 * KV_HEADS) + head - HEADS
    if head < HEADS:
        out = q + (token * HEADS + head) * DIM
        tl.store(out + first, a.to(tl.bfloat16), mask=there)
        tl.store(out + second, b.to(tl.bfloat16), mask=there)
    elif scales is None:
        tl.store(rows + part * DIM + first, a.to(tl.bfloat16), mask=there)
        tl.store(rows + part * DIM + second, b.to(tl.bfloat16), mask=there)
    else:
        largest = tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0))  # 0 where not `there`
        scale = tl.where(largest > 0, largest / 127.0, 1.0)
        tl.store(scales + part, scale)
        tl.store(rows + part * DIM + first, to_int8(a, scale), mask=there)
        tl.store(rows + part * DIM + second, to_int8(b, scale), mask=there)


def rotate(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    norms: torch.Tensor | None,
    eps: float,
    turns: torch.Tensor,
    interleaved: bool,
    position: torch.Tensor,
    cache: CacheRows,
    q: torch.Tensor,
) -> None:
    """Write `q` bf16 `[T, heads, d]` and cache rows `position ... position + T - 1`
    `[S, 2 * key heads * d]`.

    `qkv` float32 `[T, (heads + 2 * key heads) * d]` contiguous, and so long a `bias` or None;
    `norms` float32 `[2, d]` of queries and of keys, or None; `turns` float32 `[context, d / 2, 2]`;
    `position` int32 `[1]`. The caller sees to it that the rows lie within the cache and the table.
    """
    n_tokens, heads, dim = q.shape
    kv_heads = cache.rows.shape[-1] // (2 * dim)
    launch(
        rope_kernel, (n_tokens, heads + 2 * kv_heads),
        qkv, bias, norms, turns, position, q, cache.rows, cache.scales, eps, num_warps=1,
        **_constants(heads, kv_heads, dim, interleaved),
    )  # fmt: skip


def _constants(heads: int, kv_heads: int, dim: int, interleaved: bool) -> dict[str, Any]:
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "DIM": dim,
        "BLOCK": triton.next_power_of_2(dim),
        "INTERLEAVED": interleaved,
    }


def configurations(arch: int, sizes: GroupedSizes = DISTILL_7B) -> Iterator[Configuration]:
    """The one kernel, with what the architecture has, into caches in bf16 and int8."""
    constants = _constants(
        sizes.n_heads, sizes.n_kv_heads, sizes.head_dim, sizes.rope.interleaved
    )  # fmt: skip
    signature = {
        **{"qkv": "*fp32", "turns": "*fp32", "position": "*i32", "q": "*bf16"},
        "eps": "fp32",
    }
    for name, architecture in (("bias", "qwen2"), ("norms", "qwen3")):
        if sizes.architecture == architecture:
            signature[name] = "*fp32"
        else:
            constants[name] = None
    for rows, held in KINDS:
        yield Configuration(rope_kernel, signature | rows, constants | held, 1, 2)
