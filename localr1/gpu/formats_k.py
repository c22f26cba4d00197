"""Formats of 256 values a block on the GPU: the K-quants and IQ4_XS.

A chunk's `j` is its place in the block. formats.py says what these functions return.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import four, high_half, iq4, load_chunk, load_half, load_word, low_half


@triton.jit
def load_q2_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Bit pairs; scale and minimum of each group in a byte; d and dmin in a word."""
    packed = data + n_blocks * 64 + first * 16
    place = c // 2 * 8 + c % 2
    return (
        load_chunk(data, first * 4, c, lane, WORDS),
        load_word(data + n_blocks * 80, first, c // 4),
        tl.load(packed + place),
        tl.load(packed + (place + 2)),
        tl.load(packed + (place + 4)),
        tl.load(packed + (place + 6)),
    )


@triton.jit
def codes_q2_k(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Bit pairs."""
    return (parts[0] >> (2 * GROUP)) & 0x03030303


@triton.jit
def scales_q2_k(parts, c, GROUP: tl.constexpr):
    """d * scale and -dmin * minimum."""
    packed = parts[2 + GROUP]
    factor = low_half(parts[1]) * (packed & 15).to(tl.float32)
    return factor, -high_half(parts[1]) * (packed >> 4).to(tl.float32)


@triton.jit
def load_q3_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Bit pairs; high bits; three words of scales; d."""
    packed, block = data + n_blocks * 96, c // 4
    return (
        load_chunk(data, first * 4, c, lane, WORDS),
        load_chunk(data + n_blocks * 64, first * 2, block * 2 + c % 2, lane, WORDS),
        load_word(packed, first * 3, block * 3),
        load_word(packed, first * 3, block * 3 + 1),
        load_word(packed, first * 3, block * 3 + 2),
        load_half(data + n_blocks * 108, first, block),
    )


@triton.jit
def codes_q3_k(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Bit pairs, and above them bit `GROUP + 4 * half` of the high bits."""
    at = (c % 4 // 2 * 4 + GROUP).to(tl.uint32)
    high = (parts[1] >> tl.expand_dims(at, -1)) & 0x01010101
    return codes_q2_k(parts, c, GROUP, WORDS) | (high << 2)


@triton.jit
def scales_q3_k(parts, c, GROUP: tl.constexpr):
    """d * (scale - 32)."""
    j = c % 4
    half = j // 2
    at = 8 * (2 * GROUP % 4 + j % 2)
    low = (parts[2 + GROUP // 2] >> (at + 4 * half).to(tl.uint32)) & 15
    high = (parts[4] >> (at + 2 * (2 * half + GROUP // 2)).to(tl.uint32)) & 3
    return (parts[5] * ((low | (high << 4)).to(tl.float32) - 32),)


@triton.jit
def load_q4_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles of two sub-blocks, 16 and 16 bytes; d and dmin in a word; three words of scales."""
    fourth = tl.expand_dims(tl.expand_dims(tl.arange(0, 4), 0), 0)
    head = four(load_chunk(data + n_blocks * 128, first, c // 4, fourth, True))
    early = load_chunk(data, first * 8, c * 2, lane, WORDS)
    late = load_chunk(data, first * 8, c * 2 + 1, lane, WORDS)
    return (early, late) + head


@triton.jit
def codes_q4_k(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles."""
    return (parts[GROUP % 2] >> (4 * (GROUP // 2))) & 0x0F0F0F0F


@triton.jit
def scales_q4_k(parts, c, GROUP: tl.constexpr):
    """d * scale and -dmin * minimum of sub-block `2 * j + GROUP // 2`.

    The 6-bit numbers of four sub-blocks are put into the bytes of a word at once: the first four
    come whole, the last four as low halves with their high bits in the first four's bytes.
    """
    j = c % 4
    early, a, b, last = j < 2, parts[3], parts[4], parts[5]
    scale = tl.where(early, a & 0x3F3F3F3F, (last & 0x0F0F0F0F) | ((a >> 2) & 0x30303030))
    minimum = tl.where(early, b & 0x3F3F3F3F, ((last >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030))
    at = (j % 2 * 16).to(tl.uint32) + 8 * (GROUP // 2)
    scale = ((scale >> at) & 63).to(tl.float32)
    minimum = ((minimum >> at) & 63).to(tl.float32)
    return low_half(parts[2]) * scale, -high_half(parts[2]) * minimum


@triton.jit
def load_q5_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """As Q4_K; then the fifth bits, a byte for the eight values that are 32 apart."""
    plane, place = data + n_blocks * 144, c // 4 * 2
    early = load_chunk(plane, first * 2, place, lane, WORDS)
    late = load_chunk(plane, first * 2, place + 1, lane, WORDS)
    return load_q4_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS) + (early, late)


@triton.jit
def codes_q5_k(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles and fifth bits."""
    at = (c % 4 * 2 + GROUP // 2).to(tl.uint32)
    fifths = (parts[6 + GROUP % 2] >> tl.expand_dims(at, -1)) & 0x01010101
    return codes_q4_k(parts, c, GROUP, WORDS) | (fifths << 4)


@triton.jit
def scales_q5_k(parts, c, GROUP: tl.constexpr):
    """As Q4_K."""
    return scales_q4_k(parts, c, GROUP)


@triton.jit
def load_q6_k(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """High bit pairs; nibbles of groups 0 and 2, of 1 and 3; a signed scale for each group; d."""
    nibbles = data + n_blocks * 64
    low = c // 2 * 4 + c % 2
    signed = (data + n_blocks * 192).to(tl.pointer_type(tl.int8)) + first * 16
    place = c // 2 * 8 + c % 2
    return (
        load_chunk(data, first * 4, c, lane, WORDS),
        load_chunk(nibbles, first * 8, low, lane, WORDS),
        load_chunk(nibbles, first * 8, low + 2, lane, WORDS),
        load_half(data + n_blocks * 208, first, c // 4),
        tl.load(signed + place),
        tl.load(signed + (place + 2)),
        tl.load(signed + (place + 4)),
        tl.load(signed + (place + 6)),
    )


@triton.jit
def codes_q6_k(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """Nibbles, and above them the high pairs."""
    low = (parts[1 + GROUP % 2] >> (4 * (GROUP // 2))) & 0x0F0F0F0F
    return low | (((parts[0] >> (2 * GROUP)) & 0x03030303) << 4)


@triton.jit
def scales_q6_k(parts, c, GROUP: tl.constexpr):
    """d * scale."""
    return (parts[3] * parts[4 + GROUP].to(tl.float32),)


@triton.jit
def load_iq4_xs(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """Nibbles; d and the scales' high bits in a word; their low bits in another."""
    head, block = data + n_blocks * 128, c // 8
    return (
        load_chunk(data, first * 8, c, lane, WORDS),
        load_word(head, first * 2, block * 2),
        load_word(head, first * 2, block * 2 + 1),
    )


@triton.jit
def codes_iq4_xs(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """table[q]."""
    return iq4(parts[0], GROUP)


@triton.jit
def scales_iq4_xs(parts, c, GROUP: tl.constexpr):
    """d * (scale - 32); the code is no subnormal, so UP is taken back here."""
    j = (c % 8).to(tl.uint32)
    low = (parts[2] >> (4 * j)) & 15
    high = (parts[1] >> (16 + 2 * j)) & 3
    return (low_half(parts[1]) * ((low | (high << 4)).to(tl.float32) - 32) * 2.0**-100,)
