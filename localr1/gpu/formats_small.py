"""Formats of 32 values a block on the GPU; a chunk is a block's 16 bytes, or half of Q8_0's 32.

Low nibbles are the first 16 values of a block, high nibbles the last 16. formats.py says what these
functions return.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import high_half, iq4, load_chunk, load_half, load_word, low_half


@triton.jit
def codes_q4_0(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles."""
    return (parts[0] >> (4 * GROUP)) & 0x0F0F0F0F


@triton.jit
def codes_q4_1(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles."""
    return codes_q4_0(parts, c, GROUP, WORDS)


@triton.jit
def codes_q5_0(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles and fifth bits: bit `16 * GROUP + i` of a word is value i's."""
    N: tl.constexpr = 4 if WORDS else 1  # values that a place holds
    bits = tl.expand_dims(parts[1], -1) >> (N * parts[3] + 16 * GROUP).to(tl.uint32)
    # A product spreads four bits over four bytes.
    fifths = (((bits & (2**N - 1)) * 0x00204081) & 0x01010101) << 4
    return codes_q4_0(parts, c, GROUP, WORDS) | fifths


@triton.jit
def codes_q5_1(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles and fifth bits."""
    return codes_q5_0(parts, c, GROUP, WORDS)


@triton.jit
def codes_q8_0(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Signed bytes, 128 more."""
    return parts[0] ^ (0x80808080 if WORDS else 0x80)


@triton.jit
def codes_iq4_nl(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """table[q]."""
    return iq4(parts[0], GROUP)


@triton.jit
def load_q4_0(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; d."""
    return load_chunk(data, first, c, lane, WORDS), load_half(data + n_blocks * 16, first, c)


@triton.jit
def scales_q4_0(parts, c, GROUP: tl.constexpr):
    """d."""
    return (parts[1],)


@triton.jit
def load_q4_1(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; d and m in a word."""
    return load_chunk(data, first, c, lane, WORDS), load_word(data + n_blocks * 16, first, c)


@triton.jit
def scales_q4_1(parts, c, GROUP: tl.constexpr):
    """d and m."""
    return low_half(parts[1]), high_half(parts[1])


@triton.jit
def load_q5_0(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; fifth bits; d."""
    bits = load_word(data + n_blocks * 16, first, c)
    d = load_half(data + n_blocks * 20, first, c)
    return load_chunk(data, first, c, lane, WORDS), bits, d, lane


@triton.jit
def scales_q5_0(parts, c, GROUP: tl.constexpr):
    """d."""
    return (parts[2],)


@triton.jit
def load_q5_1(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; fifth bits; d and m in a word."""
    bits = load_word(data + n_blocks * 16, first, c)
    both = load_word(data + n_blocks * 20, first, c)
    return load_chunk(data, first, c, lane, WORDS), bits, both, lane


@triton.jit
def scales_q5_1(parts, c, GROUP: tl.constexpr):
    """d and m."""
    return low_half(parts[2]), high_half(parts[2])


@triton.jit
def load_q8_0(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Half of a block's signed bytes; d."""
    d = load_half(data + n_blocks * 32, first, c // 2)
    return load_chunk(data, first * 2, c, lane, WORDS), d


@triton.jit
def scales_q8_0(parts, c, GROUP: tl.constexpr):
    """d."""
    return (parts[1],)


@triton.jit
def load_iq4_nl(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; d."""
    return load_chunk(data, first, c, lane, WORDS), load_half(data + n_blocks * 16, first, c)


@triton.jit
def scales_iq4_nl(parts, c, GROUP: tl.constexpr):
    """d; the code is no subnormal, so UP is taken back here."""
    return (parts[1] * 2.0**-100,)
