"""What both forms of attention on the GPU share: tiles of operands, one step of an online softmax.

Products take bf16 and sum in float32. `FLOAT_DOT` is for Triton's interpreter, which multiplies no
bf16: the same values, rounded to bf16, are multiplied as float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # the kernels work in powers of 2


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds at a time: query rows, keys; and how it is run."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def padded(size: int) -> int:
    """The columns that a tile of `size` columns takes: a power of 2, as products need it."""
    return max(16, triton.next_power_of_2(size))


@triton.jit
def operand(source, offset, inside, columns, SIZE: tl.constexpr, FLOAT_DOT: tl.constexpr):
    """Rows at offsets [n] of a bf16 source, the first SIZE of `columns`; 0 elsewhere."""
    mask = inside[:, None] & (columns < SIZE)[None, :]
    tile = tl.load(source + offset[:, None] + columns[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32) if FLOAT_DOT else tile


@triton.jit
def softmax_step(scores, values, value_scale, peak, total, acc, FLOAT_DOT: tl.constexpr):
    """Take in scores [rows, keys] (in powers of 2, -inf: unseen) and their values [keys, columns].

    peak, total [rows] and acc [rows, columns] are the largest score so far, and the sums of weights
    and weighted values relative to it. `value_scale` [keys] multiplies the values, or None.
    """
    best = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(best == float("-inf"), 0.0, best)  # nothing seen yet: no NaN
    shrink = tl.exp2(peak - base)
    weights = tl.exp2(scores - base[:, None])
    if value_scale is not None:
        total = total * shrink + tl.sum(weights, 1)
        weights = (weights * value_scale[None, :]).to(tl.bfloat16)
    else:  # divide by the sum of the weights as the product sees them
        weights = weights.to(tl.bfloat16)
        total = total * shrink + tl.sum(weights.to(tl.float32), 1)
    if FLOAT_DOT:
        acc = tl.dot(weights.to(tl.float32), values, acc * shrink[:, None])
    else:
        acc = tl.dot(weights, values, acc * shrink[:, None])
    return best, total, acc
