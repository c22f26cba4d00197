"""Rows of a cache on the GPU: bf16, or 8 bits a value with a few float32 scales a row.

Latent attention's row is a token's latent `[kv_lora_rank]` and its rotated key
`[qk_rope_head_dim]`; in 8 bits each is FP8 e4m3 with a scale of its own. Grouped-query attention's
is `[keys | values]` of every key head; in 8 bits int8, with a scale for each head's key and value:
the largest of them is then exact, and the others err by at most twice what bf16 rounds that one by.

e4m3 is written and read with integer operations, because Triton's own type does not compile below
compute capability 8.9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, LatentSizes

_ROWS = 16  # rows that one program of `unpack_kernel` turns


@dataclass(frozen=True, slots=True)
class CacheRows:
    """One layer's cache: `rows` bf16 `[S, width]`; or uint8 (e4m3) with `scales` float32 `[S, 2]`,
    or int8 with `scales` float32 `[S, 2 * key heads]`.
    """

    rows: torch.Tensor
    scales: torch.Tensor | None = None


@triton.jit
def to_e4m3(values):
    """float32 of magnitude up to 448 -> e4m3 codes, nearest, ties to even (uint8)."""
    bits = values.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    rounded = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)  # bias 127 -> 7
    # Below 2**-6 codes are multiples of 2**-9: those are the last bits of a sum with 2**14.
    steps = tl.abs(values) + 16384.0
    steps = steps.to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, steps, rounded)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def from_e4m3(codes):
    """e4m3 codes (uint8) -> their values times 2**-8, exactly, as bf16.

    The bits of an e4m3 value, moved up, are a float16 whose bias differs by 8.
    """
    wide = codes.to(tl.int16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32).to(tl.bfloat16)


@triton.jit
def to_int8(values, scale):
    """float32 values -> the nearest multiples of `scale`, which is at least a 127th of each."""
    return tl.floor(values / scale + 0.5).to(tl.int8)


@triton.jit
def store_row(rows, scales, at, part: tl.constexpr, columns, inside, values):
    """Write the latent (`part` 0) or rotated key (1) of row `at`: bf16, or e4m3 and its scale."""
    if scales is None:
        tl.store(rows + columns, values.to(tl.bfloat16), mask=inside)
    else:
        largest = tl.max(tl.where(inside, tl.abs(values), 0.0), 0)
        scale = tl.where(largest > 0, largest / 448.0, 1.0)
        tl.store(scales + at * 2 + part, scale)
        scaled = tl.minimum(tl.maximum(values / scale, -448.0), 448.0)
        tl.store(rows + columns, to_e4m3(scaled), mask=inside)


@triton.jit
def unpack_kernel(
    rows, scales, out, n_rows,
    RANK: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of FP8 [n_rows, WIDTH] -> out bf16."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (row < n_rows) & (columns < WIDTH)
    codes = tl.load(rows + row * WIDTH + columns, mask=inside, other=0)
    scale = tl.load(scales + row * 2 + (columns >= RANK).to(tl.int32), mask=inside, other=0.0)
    values = from_e4m3(codes).to(tl.float32) * (scale * 256.0)
    tl.store(out + row * WIDTH + columns, values.to(tl.bfloat16), mask=inside)


def unpacked(cache: CacheRows, first: int, end: int, rank: int) -> torch.Tensor:
    """Rows `first` to `end` as bf16 `[end - first, width]`: the cache itself where it is bf16."""
    rows = cache.rows[first:end]
    if cache.scales is None:
        return rows
    out = torch.empty(rows.shape, dtype=torch.bfloat16, device=rows.device)
    n_rows, width = rows.shape
    launch(
        unpack_kernel, (triton.cdiv(n_rows, _ROWS),), rows, cache.scales[first:end], out, n_rows,
        RANK=rank, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=_ROWS,
    )  # fmt: skip
    return out


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Unpacking an FP8 cache."""
    width = sizes.kv_lora_rank + sizes.qk_rope_head_dim
    block = triton.next_power_of_2(width)
    yield Configuration(
        unpack_kernel,
        {"rows": "*u8", "scales": "*fp32", "out": "*bf16", "n_rows": "i32"},
        {"RANK": sizes.kv_lora_rank, "WIDTH": width, "BLOCK": block, "ROWS": _ROWS},
        4,
        2,
    )
