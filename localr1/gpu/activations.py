"""Activations as integers: int16 with a scale for each 128, which weights of integers meet.

A quantised weight is a small integer and a scale for 16 or 32 of them. With integers on the other
side too a product is one instruction for two values instead of five or six, and rounding costs
2**-16 of the largest of 128 activations: less than bf16, and 250 times less than int8.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.launch import Configuration, launch

BLOCK = 128  # values that share a scale
_TILE = 16  # blocks of a tile
_PROGRAM = 4  # blocks that one program makes


class Integers(NamedTuple):
    """Rows of `row_blocks` blocks each, the last one filled up with zeros.

    `words` int32 [tiles, 16, 16, 4]: values of 16 blocks, two in a word. The second axis is a
    place of 8 values in the block and the third the block, so that neighbouring threads, which
    take the same place in neighbouring blocks, read neighbouring bytes. `units` float32 [blocks]
    are the scales, `sums` int32 [blocks, 8] sums of 16 values. `between` rows make a token.
    """

    words: torch.Tensor
    units: torch.Tensor
    sums: torch.Tensor
    row_blocks: int
    between: int = 1


class Activations:
    """`values` float32 or bf16 `[T, cols]` or `[T, n, cols]`; integers when first asked for, if
    they were not made with the values.
    """

    def __init__(self, values: torch.Tensor, integers: Integers | None = None) -> None:
        self.values = values
        if integers is not None:
            self.integers = integers

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def integers(self) -> Integers:
        """Of T * n rows; of T rows where the n are one and the same in memory."""
        return _quantised(self.values)


@triton.jit
def quantise_kernel(
    x, words, units, sums, n_blocks, row_blocks, between, cols, x_token, x_matrix,
    PROGRAM: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """PROGRAM blocks of rows `between` of which make a token; strides are in units of 8 values."""
    pdl.relay(PDL)
    block = tl.program_id(0) * PROGRAM + tl.arange(0, PROGRAM)
    row = (block // row_blocks).to(tl.int64)
    start = row // between * (x_token * 8) + row % between * (x_matrix * 8)
    column = (block % row_blocks * 128)[:, None] + tl.arange(0, 128)[None, :]
    there = block < n_blocks
    inside = (column < cols) & there[:, None]
    values = tl.load(x + start[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    store_integers(values, block, there, words, units, sums)


@triton.jit
def store_integers(values, block, there, words, units, sums):
    """Values [n, 128] of the blocks [n] that are `there`."""
    N: tl.constexpr = values.shape[0]
    largest = tl.maximum(tl.max(tl.abs(values), 1), 1e-30)
    # The sum's last bits are the rounded integer.
    rounded = values * (32767.0 / largest)[:, None] + 1.5 * 2.0**23
    tl.store(units + block, largest / 32767.0, mask=there)
    integers = rounded.to(tl.int32, bitcast=True)
    plain = tl.reshape(integers - 0x4B400000, [N, 8, 16])
    place = (block * 8)[:, None] + tl.arange(0, 8)[None, :]
    tl.store(sums + place, tl.sum(plain, 2), mask=there[:, None])
    even, odd = tl.split(tl.reshape(integers, [N, 64, 2]))
    word = tl.arange(0, 64)[None, :]
    place = (block // 16 * 1024 + block % 16 * 4)[:, None] + word // 4 * 64 + word % 4
    tl.store(words + place, (even & 0xFFFF) | (odd << 16), mask=there[:, None])


def empty(n_tokens: int, cols: int, device: torch.device, between: int = 1) -> Integers:
    """Memory for the activations of so many tokens, `between` rows each."""
    row_blocks = triton.cdiv(cols, BLOCK)
    n = triton.cdiv(n_tokens * between * row_blocks, _TILE) * _TILE
    words = torch.empty(n * 64, dtype=torch.int32, device=device)
    units = torch.empty(n, dtype=torch.float32, device=device)
    sums = torch.empty(n * 8, dtype=torch.int32, device=device)
    return Integers(words, units, sums, row_blocks, between)


def _quantised(x: torch.Tensor) -> Integers:
    between = x.shape[1] if x.dim() == 3 and x.stride(1) else 1
    if x.stride(-1) != 1 or any(stride % 8 for stride in x.stride()[:-1]):
        x = x.contiguous()
    cols = x.shape[-1]
    made = empty(len(x), cols, x.device, between)
    n_blocks = len(x) * between * made.row_blocks
    launch(
        quantise_kernel, (triton.cdiv(n_blocks, _PROGRAM),),
        x, *made[:3], n_blocks, made.row_blocks, between, cols,
        x.stride(0) // 8, x.stride(1) // 8 if between > 1 else 0, PROGRAM=_PROGRAM,
    )  # fmt: skip
    return made


def configurations(arch: int, _: object = None) -> Iterator[Configuration]:
    """float32 and bf16."""
    counts = ("n_blocks", "row_blocks", "between", "cols", "x_token", "x_matrix")
    pointers = {"words": "*i32", "units": "*fp32", "sums": "*i32"}
    for x in ("*fp32", "*bf16"):
        signature = {"x": x, **pointers, **dict.fromkeys(counts, "i32")}
        yield Configuration(quantise_kernel, signature, {"PROGRAM": _PROGRAM}, 4, 2)
