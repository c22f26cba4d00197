"""Small Triton functions on bits, and the powers of two that undo them."""

from __future__ import annotations

import triton
import triton.language as tl

# The lowest bit of a float32 is 2**-149. Of that, this is left of a number times 2**100.
SUBNORMAL = tl.constexpr(2.0**49)


@triton.jit
def as_float(bits):
    """uint32 -> the float32 with these bits."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def low_half(word):
    """The float16 in the lower half of a uint32, as float32."""
    return (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def high_half(word):
    """The float16 in the upper half of a uint32, as float32."""
    return (word >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def load_chunk(plane, first, place, lane, WORDS: tl.constexpr):
    """16 bytes, number `place` behind those before `first`: uint32 `[..., 16]`, one each, or
    (WORDS) `[..., 4]`, four each.

    `first` does not change while a kernel walks along a row, so its part of the address does not.
    """
    if WORDS:
        start = plane.to(tl.pointer_type(tl.uint32)) + tl.expand_dims(first * 4, -1)
        chunk = tl.load(start + (tl.expand_dims(place * 4, -1) + lane))
    else:
        start = plane + tl.expand_dims(first * 16, -1)
        chunk = tl.load(start + (tl.expand_dims(place * 16, -1) + lane)).to(tl.uint32)
    return chunk


@triton.jit
def load_word(plane, first, place):
    """uint32 number `place` behind `first`."""
    return tl.load(plane.to(tl.pointer_type(tl.uint32)) + first + place)


@triton.jit
def load_half(plane, first, place):
    """float16 number `place` behind `first`, as float32."""
    return tl.load(plane.to(tl.pointer_type(tl.float16)) + first + place).to(tl.float32)


@triton.jit
def four(words):
    """The four `[n, m]` of a tensor `[n, m, 4]`."""
    even, odd = tl.split(tl.reshape(words, [words.shape[0], words.shape[1], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def iq4(byte, GROUP: tl.constexpr):
    """IQ4's sixteen values (-127 to 113), of the low nibbles or (GROUP 1) the high, as float32.

    They follow a polynomial to within 0.4, so rounding it gives them all; a table in memory would
    cost a load for each weight. The nibble becomes a number as the end of a float32's mantissa.
    """
    if GROUP == 0:
        n = as_float((byte & 0x0F) | 0x4B000000) - (2.0**23 + 7)
    else:
        n = as_float((byte & 0xF0) | 0x49000000) - (2.0**19 + 7)
    value = ((0.000144791 * n + 0.000722379) * n + 0.0679785) * n - 0.216731
    value = (value * n + 11.7818) * n - 10.2629
    return (value + 1.5 * 2.0**23) - 1.5 * 2.0**23
