"""Absorbed MLA attention for decoding: up to 8 queries per head over the latent cache.

All heads attend over the same rows, so a tile of rows serves many heads at once and is read from
memory once: as keys, and, its latent part, as values. The keys are cut into `splits` shares that
run side by side (splits.py).

Queries of several tokens are rows of one matrix, `[token][head]`; a row sees the keys up to its own
token's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.activations import Integers
from localr1.gpu.attention import LOG2_E, Tile, operand, padded, softmax_step
from localr1.gpu.cache_rows import CacheRows, from_e4m3
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, LatentSizes
from localr1.gpu.splits import combine, combining, share_of, spread


@triton.jit
def fp8_operand(source, offset, inside, columns, SIZE: tl.constexpr, FLOAT_DOT: tl.constexpr):
    """As `operand`, of e4m3 codes: 2**-8 times their values."""
    mask = inside[:, None] & (columns < SIZE)[None, :]
    codes = tl.load(source + offset[:, None] + columns[None, :], mask=mask, other=0)
    tile = from_e4m3(codes)
    return tile.to(tl.float32) if FLOAT_DOT else tile


@triton.jit
def partial_kernel(
    q_latent, q_rope, rows, scales, position, sums, peaks, n_tokens, splits, scale,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, BLOCK_RANK: tl.constexpr,
    BLOCK_ROPE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, FLOAT_DOT: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Query rows of tile `program_id(0)` over the keys of split `program_id(1)`.

    sums [rows, splits, RANK] are the attended latents, peaks [rows, splits] the logarithm (base 2)
    of each share's weight; -inf where a row sees none of its keys.
    """
    split, start = tl.program_id(1), tl.load(position)
    length = start + n_tokens
    share = share_of(length, splits, KEYS)
    first = split * share
    end = tl.minimum(first + share, length)
    pdl.relay(PDL)
    if first >= end:
        return
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = line < n_tokens * HEADS
    last = start + line // HEADS
    column, rotated = tl.arange(0, BLOCK_RANK), tl.arange(0, BLOCK_ROPE)
    latent_q = operand(q_latent, line * RANK, real, column, RANK, FLOAT_DOT)
    rope_q = operand(q_rope, line * ROPE, real, rotated, ROPE, FLOAT_DOT)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_RANK], tl.float32)
    for at in range(first, end, KEYS):
        key = at + tl.arange(0, KEYS)
        inside = key < end
        row = key.to(tl.int64) * (RANK + ROPE)
        if scales is None:
            latent = operand(rows, row, inside, column, RANK, FLOAT_DOT)
            rope = operand(rows, row + RANK, inside, rotated, ROPE, FLOAT_DOT)
            latent_scale = None
            scores = tl.dot(rope_q, tl.trans(rope), tl.dot(latent_q, tl.trans(latent)))
        else:
            latent = fp8_operand(rows, row, inside, column, RANK, FLOAT_DOT)
            rope = fp8_operand(rows, row + RANK, inside, rotated, ROPE, FLOAT_DOT)
            latent_scale = tl.load(scales + key * 2, mask=inside, other=0.0) * 256.0
            rope_scale = tl.load(scales + key * 2 + 1, mask=inside, other=0.0) * 256.0
            scores = tl.dot(latent_q, tl.trans(latent)) * latent_scale[None, :]
            scores += tl.dot(rope_q, tl.trans(rope)) * rope_scale[None, :]
        seen = inside[None, :] & (key[None, :] <= last[:, None])
        scores = tl.where(seen, scores * scale, float("-inf"))
        peak, total, acc = softmax_step(scores, latent, latent_scale, peak, total, acc, FLOAT_DOT)
    weight = tl.where(total == 0, 1.0, total)  # 0: all keys of this share lie behind the query
    out = line.to(tl.int64) * splits + split
    tl.store(peaks + out, peak + tl.log2(weight), mask=real)
    mask = real[:, None] & (column < RANK)[None, :]
    tl.store(sums + out[:, None] * RANK + column[None, :], acc / weight[:, None], mask=mask)


def attend(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    cache: CacheRows,
    position: torch.Tensor,
    scale: float,
    arch: int,
    splits: int,
    out: torch.Tensor | None = None,
    made: Integers | None = None,
) -> torch.Tensor:
    """Queries `[T, heads, rank]` and `[T, heads, rope]` bf16 at positions `position ...` over the
    cache rows up to their own -> attended latents `[T, heads, rank]`, float32 if `out` is not
    given.

    `position` int32 `[1]`; `scale` is the softmax's; `arch` the GPU's compute capability, as 86;
    `splits` from `splits_for`; `made` is filled with the same as integers (splits.combine).
    """
    n_tokens, heads, rank = q_latent.shape
    n_rows, device = n_tokens * heads, q_latent.device
    tile = tile_for(arch, n_rows, cache.scales is not None)
    if out is None:
        out = torch.empty(q_latent.shape, dtype=torch.float32, device=device)
    sums = torch.empty(n_rows, splits, rank, dtype=torch.float32, device=device)
    peaks = torch.empty(n_rows, splits, dtype=torch.float32, device=device)
    launch(
        partial_kernel, (triton.cdiv(n_rows, tile.rows), splits),
        q_latent, q_rope, cache.rows, cache.scales, position, sums, peaks, n_tokens, splits,
        scale * LOG2_E, num_warps=tile.num_warps, num_stages=tile.num_stages,
        **_constants(heads, rank, q_rope.shape[-1], tile, device.type == "cpu"),
    )  # fmt: skip
    combine(sums, peaks, position, tile.keys, out, made)
    return out


def tile_for(arch: int, n_rows: int, fp8: bool) -> Tile:
    """More query rows read the cache fewer times; 32 by 32 in two stages take 74 of 99 KiB.

    Longer tiles where shared memory allows, on Hopper in three stages: in two the next keys come
    only when these are done with. Decoding FP8 leaves no registers for them.
    """
    if n_rows <= 16:
        return Tile(16, 32, 4, 2)
    if fp8 or arch not in (80, 90):
        return Tile(32, 32, 8, 2)
    return Tile(32, 64, 8, 2) if arch == 80 else Tile(32, 64, 4, 3)


def splits_for(n_rows: int, multiprocessors: int) -> int:
    """As many splits as give every multiprocessor a program."""
    return spread(triton.cdiv(n_rows, 16 if n_rows <= 16 else 32), multiprocessors)


def _constants(heads: int, rank: int, rope: int, tile: Tile, float_dot: bool) -> dict[str, Any]:
    return {
        "HEADS": heads,
        "RANK": rank,
        "ROPE": rope,
        "BLOCK_RANK": padded(rank),
        "BLOCK_ROPE": padded(rope),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "FLOAT_DOT": float_dot,
    }


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Both kernels, for one token and for several, over bf16 and FP8 caches."""
    heads, rank, rope = sizes.n_heads, sizes.kv_lora_rank, sizes.qk_rope_head_dim
    counts = {"n_tokens": "i32", "splits": "i32"}
    keys = set()
    for fp8 in (False, True):
        kind = {"rows": "*u8", "scales": "*fp32"} if fp8 else {"rows": "*bf16"}
        signature = {
            **{"q_latent": "*bf16", "q_rope": "*bf16", "position": "*i32"},
            **{"sums": "*fp32", "peaks": "*fp32", "scale": "fp32"},
        }
        for tile in {tile_for(arch, n_tokens * heads, fp8) for n_tokens in range(1, 9)}:
            keys.add(tile.keys)
            constants = _constants(heads, rank, rope, tile, False)
            constants |= {} if fp8 else {"scales": None}
            yield Configuration(
                partial_kernel, signature | counts | kind, constants,
                tile.num_warps, tile.num_stages,
            )  # fmt: skip
    yield from combining(rank, keys)
