"""Where the parts of a quantised activation row lie.

A row of `cols` values, padded with zeros to whole 256s, is one run of bytes: the int8 values, then
one float32 scale per block (32 values in kind Q8_32, 256 in Q8_K), then int16 sums of every 32
values, then int16 sums of every 16. The sums let a kernel apply a weight format's minimum, or a
sign offset, once per sub-block instead of once per value. Kind FLOAT is the plain float32 row.
"""

from __future__ import annotations

from cpu_experts.cache import jitable
from cpu_experts.formats import FLOAT, Q8_32


@jitable
def padded(cols):
    """Columns of a row with its padding: zeros, so that kernels take 256 values at a time."""
    return (cols + 255) // 256 * 256


@jitable
def scales_offset(cols):
    """Bytes from a row's start to its float32 block scales."""
    return padded(cols)


@jitable
def sums32_offset(cols, block):
    """Bytes from a row's start to the int16 sums of 32 values."""
    return padded(cols) + padded(cols) // block * 4


@jitable
def sums16_offset(cols, block):
    """Bytes from a row's start to the int16 sums of 16 values."""
    return sums32_offset(cols, block) + padded(cols) // 32 * 2


@jitable
def row_stride(kind, cols):
    """Bytes of one activation row; of a quantised one a multiple of 64."""
    if kind == FLOAT:
        return cols * 4
    block = 32 if kind == Q8_32 else 256
    return (sums16_offset(cols, block) + padded(cols) // 16 * 2 + 63) // 64 * 64
