"""Where the parts of a quantised activation row lie.

A row of `cols` values is one run of bytes: the int8 values (padded to 64), then one float32 scale per
block (32 values in kind Q8_32, 256 in Q8_K), then int16 sums of every 32 values, then int16 sums of
every 16. The sums let a kernel apply a weight format's minimum, or a sign offset, once per sub-block
instead of once per value. Kind FLOAT is the plain float32 row.
"""

from __future__ import annotations

from numba import njit

from cpu_experts.formats import FLOAT, Q8_32


@njit
def scales_offset(cols):
    """Bytes from a row's start to its float32 block scales."""
    return (cols + 63) // 64 * 64


@njit
def sums32_offset(cols, block):
    """Bytes from a row's start to the int16 sums of 32 values."""
    return scales_offset(cols) + cols // block * 4


@njit
def sums16_offset(cols, block):
    """Bytes from a row's start to the int16 sums of 16 values."""
    return sums32_offset(cols, block) + cols // 32 * 2


@njit
def row_stride(kind, cols):
    """Bytes of one activation row, a multiple of 64; a vector load at its end stays inside."""
    if kind == FLOAT:
        return cols * 4
    block = 32 if kind == Q8_32 else 256
    return (sums16_offset(cols, block) + cols // 16 * 2 + 64 + 63) // 64 * 64
