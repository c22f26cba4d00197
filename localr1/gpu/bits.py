"""Small Triton functions on bits, and the powers of two that undo them."""

from __future__ import annotations

import triton
import triton.language as tl

# A code's lowest bit is 2**-149 as a float32. With activations times 2**100 this is what is left.
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
def load_bytes(plane, start, lane):
    """uint32 `[..., 16]`: the 16 bytes from `start` on."""
    return tl.load(plane + tl.expand_dims(start, -1) + lane).to(tl.uint32)


@triton.jit
def load_words(plane, place):
    """uint32 number `place` of a plane."""
    return tl.load(plane.to(tl.pointer_type(tl.uint32)) + place)


@triton.jit
def load_half(plane, place):
    """float16 number `place` of a plane, as float32."""
    return tl.load(plane.to(tl.pointer_type(tl.float16)) + place).to(tl.float32)


@triton.jit
def shifted_bit(byte, mask, factor):
    """The bit of `mask` (a power of two) in bytes `[..., 16]`, as code times `factor`.

    `mask` and `factor` hold one value for each 16; a product shifts where a shift of each byte by
    another distance would cost more.
    """
    found = as_float(byte & tl.expand_dims(mask, -1))
    return found * tl.expand_dims(factor, -1)


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
