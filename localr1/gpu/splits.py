"""Keys cut into shares that run side by side, and the joining of their answers.

How one token is attended to by the whole chip. The length comes from device memory and every
program finds its share from it, so one captured graph serves every position, and short contexts
are spread over the chip as evenly as long ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.activations import BLOCK, Integers, store_integers
from localr1.gpu.launch import Configuration, launch

MAX_SPLITS = 64
_COLUMNS = BLOCK  # of an answer, that one program of `combine_kernel` joins
_WARPS = 2  # of such a program: with four, R1's have no room beside those of the kernel in front


@triton.jit
def share_of(length, splits, KEYS: tl.constexpr):
    """Keys of one split: as even as whole tiles allow."""
    return tl.cdiv(tl.cdiv(length, splits), KEYS) * KEYS


@triton.jit
def combine_kernel(
    sums, peaks, position, out, words, units, x_sums, n_tokens, splits,
    WIDTH: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Query row `program_id(0)`, COLUMNS of its answer: the splits' answers, by their weights.

    With `words`, these are also a block of integers.
    """
    length = tl.load(position) + n_tokens
    pdl.relay(PDL)
    line = tl.program_id(0).to(tl.int64)
    used = tl.cdiv(length, share_of(length, splits, KEYS))
    split = tl.arange(0, SPLITS)
    there = split < used
    weight = tl.load(peaks + line * splits + split, mask=there, other=float("-inf"))
    weight = tl.exp2(weight - tl.max(weight, 0))
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = there[:, None] & (column < WIDTH)[None, :]
    at = (line * splits + split)[:, None] * WIDTH + column[None, :]
    joined = tl.sum(tl.load(sums + at, mask=mask, other=0.0) * weight[:, None], 0)
    joined = joined / tl.sum(weight, 0)
    tl.store(out + line * WIDTH + column, joined.to(out.dtype.element_ty), mask=column < WIDTH)
    if words is not None:
        block = (line * (WIDTH // COLUMNS)).to(tl.int32) + tl.program_id(1) + tl.arange(0, 1)
        store_integers(tl.reshape(joined, [1, COLUMNS]), block, block >= 0, words, units, x_sums)


def combine(
    sums: torch.Tensor,
    peaks: torch.Tensor,
    position: torch.Tensor,
    keys: int,
    out: torch.Tensor,
    made: Integers | None = None,
) -> None:
    """`sums` float32 `[rows, splits, width]`, and `peaks` `[rows, splits]`, the logarithms (base 2)
    of their weights -> `out` `[T, heads, width]`, whose first token stands at `position`; and, of
    widths that are multiples of 128, the same as integers.

    `keys` are those of the tiles that made them.
    """
    n_rows, splits, width = sums.shape
    launch(
        combine_kernel, (n_rows, triton.cdiv(width, _COLUMNS)),
        sums, peaks, position, out, *(made or (None,) * 3)[:3], len(out), splits,
        num_warps=_WARPS, **_constants(width, keys),
    )  # fmt: skip


def spread(programs: int, multiprocessors: int) -> int:
    """As many splits as give every multiprocessor one of the `programs` that each split has."""
    return max(1, min(MAX_SPLITS, multiprocessors // programs))


def _constants(width: int, keys: int) -> dict[str, int]:
    return {"WIDTH": width, "KEYS": keys, "SPLITS": MAX_SPLITS, "COLUMNS": _COLUMNS}


def combining(width: int, keys: Iterable[int]) -> Iterator[Configuration]:
    """`combine` behind tiles of so many keys, into float32, into integers too, and into bf16."""
    counts = {"n_tokens": "i32", "splits": "i32"}
    pointers = {"words": "*i32", "units": "*fp32", "x_sums": "*i32"}
    for n_keys in sorted(set(keys)):
        for out, made in (("*fp32", True), ("*fp32", False), ("*bf16", False)):
            signature = {
                "sums": "*fp32",
                "peaks": "*fp32",
                "position": "*i32",
                "out": out,
                **counts,
            }
            constants: dict[str, Any] = dict(_constants(width, n_keys))
            if made and width % BLOCK == 0:
                signature |= pointers
            else:
                constants |= dict.fromkeys(pointers)
            yield Configuration(combine_kernel, signature, constants, _WARPS, 2)
