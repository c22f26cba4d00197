"""Formats of 32 values a block on the GPU; a chunk is a block's 16 bytes, or half of Q8_0's 32.

Low nibbles are the first 16 values of a block, high nibbles, left where they are, 16 times the last
16. formats.py says what these functions return.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import (
    SUBNORMAL,
    as_float,
    high_half,
    iq4,
    load_bytes,
    load_half,
    load_words,
    low_half,
)


@triton.jit
def _nibbles(byte, GROUP: tl.constexpr):
    """The code of the low nibbles, or 16 times that of the high ones."""
    if GROUP == 0:
        code = as_float(byte & 0x0F)
    else:
        code = as_float(byte & 0xF0)
    return code


@triton.jit
def _fives(byte, bits, lane, GROUP: tl.constexpr):
    """`_nibbles` with a fifth bit: bit `lane + 16 * GROUP` of `bits`."""
    one = (16 << lane).to(tl.uint32)
    if GROUP == 0:
        fifth = as_float((tl.expand_dims(bits, -1) << 4) & one)
    else:
        fifth = as_float((tl.expand_dims(bits, -1) >> 12) & one) * 16
    return _nibbles(byte, GROUP) + fifth * as_float(((127 - lane) << 23).to(tl.uint32))


@triton.jit
def _factor(d, GROUP: tl.constexpr):
    """What a code times UP is multiplied with, to be `d` times a nibble."""
    if GROUP == 0:
        factor = d * SUBNORMAL
    else:
        factor = d * (SUBNORMAL / 16)
    return factor


@triton.jit
def load_q4_0(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; d."""
    return load_bytes(data, block * 16, lane), load_half(data + n_blocks * 16, block)


@triton.jit
def dequantise_q4_0(parts, c, GROUP: tl.constexpr):
    """d * (q - 8)."""
    return _nibbles(parts[0], GROUP), _factor(parts[1], GROUP), -8 * parts[1]


@triton.jit
def load_q4_1(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; d and m in a word."""
    return load_bytes(data, block * 16, lane), load_words(data + n_blocks * 16, block)


@triton.jit
def dequantise_q4_1(parts, c, GROUP: tl.constexpr):
    """d * q + m."""
    return _nibbles(parts[0], GROUP), _factor(low_half(parts[1]), GROUP), high_half(parts[1])


@triton.jit
def load_q5_0(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; fifth bits; d."""
    bits = load_words(data + n_blocks * 16, block)
    return load_bytes(data, block * 16, lane), bits, load_half(data + n_blocks * 20, block), lane


@triton.jit
def dequantise_q5_0(parts, c, GROUP: tl.constexpr):
    """d * (q - 16)."""
    code = _fives(parts[0], parts[1], parts[3], GROUP)
    return code, _factor(parts[2], GROUP), -16 * parts[2]


@triton.jit
def load_q5_1(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; fifth bits; d and m in a word."""
    bits = load_words(data + n_blocks * 16, block)
    return load_bytes(data, block * 16, lane), bits, load_words(data + n_blocks * 20, block), lane


@triton.jit
def dequantise_q5_1(parts, c, GROUP: tl.constexpr):
    """d * q + m."""
    code = _fives(parts[0], parts[1], parts[3], GROUP)
    return code, _factor(low_half(parts[2]), GROUP), high_half(parts[2])


@triton.jit
def load_q8_0(data, scales, n_blocks, block, row, c, lane, cols):
    """Half of a block's signed bytes; d."""
    return load_bytes(data, block * 32 + c % 2 * 16, lane), load_half(data + n_blocks * 32, block)


@triton.jit
def dequantise_q8_0(parts, c, GROUP: tl.constexpr):
    """d * q, as d * (q + 128) - 128 * d."""
    return as_float(parts[0] ^ 0x80), parts[1] * SUBNORMAL, -128 * parts[1]


@triton.jit
def load_iq4_nl(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; d."""
    return load_bytes(data, block * 16, lane), load_half(data + n_blocks * 16, block)


@triton.jit
def dequantise_iq4_nl(parts, c, GROUP: tl.constexpr):
    """d * table[q]; the code is no subnormal, so UP is taken back here."""
    return iq4(parts[0], GROUP), parts[1] * 2.0**-100
