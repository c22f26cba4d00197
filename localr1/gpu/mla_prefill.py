"""Expanded MLA attention for prompts: every head attends over keys and values of its own.

The keys' plain part and the values are made from the latents by a matrix product, which the caller
brings, for some thousand keys at a time: what is expanded stays within `workspace` bytes at any
length. Between such pieces the online softmax keeps each query's peak, weight and unfinished sum.
Causal, also where the queries continue a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu.attention import LOG2_E, Tile, operand, padded, softmax_step
from localr1.gpu.cache_rows import CacheRows, unpacked
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import KEYS_BYTES, R1, LatentSizes

Expand = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@triton.jit
def prefill_kernel(
    q_nope, q_rope, k_nope, rows, values, out, peaks, totals, n_queries, n_keys, lead,
    k_stride, k_head, v_stride, v_head, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr,
    V: tl.constexpr, BLOCK_NOPE: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, FLOAT_DOT: tl.constexpr,
    BEGINS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """ROWS queries of tile `program_id(0)`, head `program_id(1)`, over one piece of keys.

    Query i stands `lead + i` behind the piece's first key. out [T, HEADS, V] float32, peaks and
    totals [T, HEADS] carry the softmax from the piece that BEGINS it to the one that ENDS it, which
    divides it out. Strides are in units of 8 values, so that the compiler sees whole 16 bytes.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k_nope += head * (k_head * 8)
    values += head * (v_head * 8)
    query = tile * ROWS + tl.arange(0, ROWS)
    real, line = query < n_queries, query.to(tl.int64) * HEADS + head
    plain, rotated = tl.arange(0, BLOCK_NOPE), tl.arange(0, BLOCK_ROPE)
    column = tl.arange(0, BLOCK_V)
    plain_q = operand(q_nope, line * NOPE, real, plain, NOPE, FLOAT_DOT)
    rope_q = operand(q_rope, line * ROPE, real, rotated, ROPE, FLOAT_DOT)
    place = out + line[:, None] * V + column[None, :]
    mask = real[:, None] & (column < V)[None, :]
    if BEGINS:
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
    else:
        peak = tl.load(peaks + line, mask=real, other=float("-inf"))
        total = tl.load(totals + line, mask=real, other=0.0)
        acc = tl.load(place, mask=mask, other=0.0)
    for at in range(0, tl.minimum(n_keys, lead + (tile + 1) * ROWS), KEYS):
        key = at + tl.arange(0, KEYS)
        inside, far = key < n_keys, key.to(tl.int64)
        k = operand(k_nope, far * (k_stride * 8), inside, plain, NOPE, FLOAT_DOT)
        r = operand(rows + RANK, far * (RANK + ROPE), inside, rotated, ROPE, FLOAT_DOT)
        v = operand(values, far * (v_stride * 8), inside, column, V, FLOAT_DOT)
        scores = tl.dot(rope_q, tl.trans(r), tl.dot(plain_q, tl.trans(k)))
        seen = inside[None, :] & (key[None, :] <= (lead + query)[:, None])
        scores = tl.where(seen, scores * scale, float("-inf"))
        peak, total, acc = softmax_step(scores, v, None, peak, total, acc, FLOAT_DOT)
    if ENDS:
        acc = acc / total[:, None]
    else:
        tl.store(peaks + line, peak, mask=real)
        tl.store(totals + line, total, mask=real)
    tl.store(place, acc, mask=mask)


def attend(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    cache: CacheRows,
    start: int,
    expand: Expand,
    v_head_dim: int,
    scale: float,
    arch: int,
    workspace: int = KEYS_BYTES,
) -> torch.Tensor:
    """Queries `[T, heads, nope]` and `[T, heads, rope]` bf16 at positions `start ...` over the
    cache rows up to their own, which are written -> float32 `[T, heads, v_head_dim]`.

    `expand(latent)`: bf16 `[n, rank]`, its rows `width` apart, -> keys `[n, heads, nope]` and
    values `[n, heads, v_head_dim]`, bf16, with strides that are multiples of 8, the last one 1.
    What it gives stays within `workspace` bytes at a time. `scale` is the softmax's, `arch` the
    GPU's compute capability, as 86.
    """
    n_tokens, heads, nope = q_nope.shape
    rope, device, end = q_rope.shape[-1], q_nope.device, start + n_tokens
    rank = cache.rows.shape[-1] - rope
    out = torch.empty(n_tokens, heads, v_head_dim, dtype=torch.float32, device=device)
    peaks, totals = torch.empty(2, n_tokens, heads, dtype=torch.float32, device=device)
    tile = tile_for(arch)
    constants = _constants(heads, nope, rope, rank, v_head_dim, tile, device.type == "cpu")
    piece = max(tile.keys, workspace // (2 * heads * (nope + v_head_dim)) // 128 * 128)
    for first in range(0, end, piece):
        rows = unpacked(cache, first, min(first + piece, end), rank)
        keys, values = expand(rows[:, :rank])
        strides = (*keys.stride()[:2], *values.stride()[:2])
        assert all(step % 8 == 0 for step in strides), "rows do not begin at multiples of 16 bytes"
        launch(
            prefill_kernel, (triton.cdiv(n_tokens, tile.rows), heads),
            q_nope, q_rope, keys, rows, values, out, peaks, totals, n_tokens, len(rows),
            start - first, *(step // 8 for step in strides),
            scale * LOG2_E, num_warps=tile.num_warps, num_stages=tile.num_stages,
            BEGINS=first == 0, ENDS=first + len(rows) == end, **constants,
        )  # fmt: skip
        del rows, keys, values  # their memory is the next ones'
    return out


def tile_for(arch: int) -> Tile:
    """What fits the registers and 99 KiB of shared memory (88 taken); Hopper has more (168)."""
    return Tile(128, 64, 8, 3 if arch == 90 else 2)


def _constants(
    heads: int, nope: int, rope: int, rank: int, v: int, tile: Tile, float_dot: bool
) -> dict[str, int]:
    return {
        **{"HEADS": heads, "NOPE": nope, "ROPE": rope, "RANK": rank, "V": v},
        **{"BLOCK_NOPE": padded(nope), "BLOCK_ROPE": padded(rope), "BLOCK_V": padded(v)},
        **{"ROWS": tile.rows, "KEYS": tile.keys, "FLOAT_DOT": float_dot},
    }


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Pieces at the beginning, in the middle, at the end, and the only one."""
    tile = tile_for(arch)
    counts = ("n_queries", "n_keys", "lead", "k_stride", "k_head", "v_stride", "v_head")
    signature = {
        **dict.fromkeys(("q_nope", "q_rope", "k_nope", "rows", "values"), "*bf16"),
        **dict.fromkeys(("out", "peaks", "totals"), "*fp32"),
        **dict.fromkeys(counts, "i32"),
        "scale": "fp32",
    }
    constants = _constants(
        sizes.n_heads, sizes.qk_nope_head_dim, sizes.qk_rope_head_dim, sizes.kv_lora_rank,
        sizes.v_head_dim, tile, False,
    )  # fmt: skip
    for begins in (False, True):
        for ends in (False, True):
            place = {"BEGINS": begins, "ENDS": ends}
            yield Configuration(
                prefill_kernel, signature, constants | place, tile.num_warps, tile.num_stages
            )
