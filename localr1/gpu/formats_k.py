"""Formats of 256 values a block on the GPU: the K-quants and IQ4_XS.

A chunk's `j` is its place in the block. Where values share a byte, a mask leaves each where it is,
so the code is the value times a power of two, which its factor takes back. formats.py says what
these functions return.
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
    shifted_bit,
)


@triton.jit
def _pairs(byte, GROUP: tl.constexpr):
    """Bits 2 * GROUP and the next: the code of value 4**GROUP * q."""
    return as_float(byte & (3 << (2 * GROUP)))


@triton.jit
def load_q2_k(data, scales, n_blocks, block, row, c, lane, cols):
    """Bit pairs; scale and minimum of each group in a byte; d and dmin in a word."""
    j = c % 4
    first = data + n_blocks * 64
    place = block * 16 + j // 2 * 8 + j % 2
    return (
        load_bytes(data, block * 64 + j * 16, lane),
        load_words(data + n_blocks * 80, block),
        tl.load(first + place),
        tl.load(first + place + 2),
        tl.load(first + place + 4),
        tl.load(first + place + 6),
    )


@triton.jit
def dequantise_q2_k(parts, c, GROUP: tl.constexpr):
    """d * scale * q - dmin * minimum."""
    packed = parts[2 + GROUP]
    factor = low_half(parts[1]) * (packed & 15).to(tl.float32)
    minimum = high_half(parts[1]) * (packed >> 4).to(tl.float32)
    return _pairs(parts[0], GROUP), factor * (SUBNORMAL / 4**GROUP), -minimum


@triton.jit
def load_q3_k(data, scales, n_blocks, block, row, c, lane, cols):
    """Bit pairs; high bits; three words of scales; d."""
    j = c % 4
    packed = data + n_blocks * 96
    return (
        load_bytes(data, block * 64 + j * 16, lane),
        load_bytes(data + n_blocks * 64, block * 32 + j % 2 * 16, lane),
        load_words(packed, block * 3),
        load_words(packed, block * 3 + 1),
        load_words(packed, block * 3 + 2),
        load_half(data + n_blocks * 108, block),
    )


@triton.jit
def dequantise_q3_k(parts, c, GROUP: tl.constexpr):
    """d * (scale - 32) * (q - 4), the third bit of q from the high bits."""
    j = c % 4
    half = j // 2
    at = 8 * (2 * GROUP % 4 + j % 2)
    low = (parts[2 + GROUP // 2] >> (at + 4 * half).to(tl.uint32)) & 15
    high = (parts[4] >> (at + 2 * (2 * half + GROUP // 2)).to(tl.uint32)) & 3
    scale = parts[5] * ((low | (high << 4)).to(tl.float32) - 32)
    # Bit GROUP + 4 * half, as 4 * 4**GROUP.
    mask = tl.where(half == 0, 1 << GROUP, 16 << GROUP).to(tl.uint32)
    lift = tl.where(half == 0, 4.0 * 2**GROUP, 2**GROUP / 4.0)
    code = _pairs(parts[0], GROUP) + shifted_bit(parts[1], mask, lift)
    return code, scale * (SUBNORMAL / 4**GROUP), -4 * scale


@triton.jit
def load_q4_k(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; d and dmin in a word; three words of scales and minima."""
    head = data + n_blocks * 128
    return (
        load_bytes(data, block * 128 + c % 8 * 16, lane),
        load_words(head, block * 4),
        load_words(head, block * 4 + 1),
        load_words(head, block * 4 + 2),
        load_words(head, block * 4 + 3),
    )


@triton.jit
def _six_bits(parts, c, GROUP: tl.constexpr):
    """d * scale and dmin * minimum of sub-block `c % 8 // 2 * 2 + GROUP` of a Q4_K or Q5_K block.

    The 6-bit numbers of four sub-blocks are put into the bytes of a word at once: the first four
    come whole, the last four as low halves with their high bits in the first four's bytes.
    """
    j = c % 8
    first, a, b, last = j < 4, parts[2], parts[3], parts[4]
    scale = tl.where(first, a & 0x3F3F3F3F, (last & 0x0F0F0F0F) | ((a >> 2) & 0x30303030))
    minimum = tl.where(first, b & 0x3F3F3F3F, ((last >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030))
    at = (j % 4 // 2 * 16).to(tl.uint32) + 8 * GROUP
    scale = ((scale >> at) & 63).to(tl.float32)
    minimum = ((minimum >> at) & 63).to(tl.float32)
    return low_half(parts[1]) * scale, high_half(parts[1]) * minimum


@triton.jit
def _nibbles(byte, GROUP: tl.constexpr):
    """The code of 16**GROUP * q."""
    return as_float(byte & (15 << (4 * GROUP)))


@triton.jit
def dequantise_q4_k(parts, c, GROUP: tl.constexpr):
    """d * scale * q - dmin * minimum."""
    factor, minimum = _six_bits(parts, c, GROUP)
    return _nibbles(parts[0], GROUP), factor * (SUBNORMAL / 16**GROUP), -minimum


@triton.jit
def load_q5_k(data, scales, n_blocks, block, row, c, lane, cols):
    """As Q4_K; then the fifth bits, a byte for the eight values that are 32 apart."""
    head = data + n_blocks * 128
    return (
        load_bytes(data, block * 128 + c % 8 * 16, lane),
        load_words(head, block * 4),
        load_words(head, block * 4 + 1),
        load_words(head, block * 4 + 2),
        load_words(head, block * 4 + 3),
        load_bytes(data + n_blocks * 144, block * 32 + c % 2 * 16, lane),
    )


@triton.jit
def dequantise_q5_k(parts, c, GROUP: tl.constexpr):
    """d * scale * q - dmin * minimum."""
    factor, minimum = _six_bits(parts, c, GROUP)
    at = c % 8 // 2 * 2 + GROUP
    mask = (1 << at).to(tl.uint32)
    lift = as_float(((127 + 4 + 4 * GROUP - at) << 23).to(tl.uint32))
    code = _nibbles(parts[0], GROUP) + shifted_bit(parts[5], mask, lift)
    return code, factor * (SUBNORMAL / 16**GROUP), -minimum


@triton.jit
def load_q6_k(data, scales, n_blocks, block, row, c, lane, cols):
    """High bit pairs; nibbles of groups 0 and 2, of 1 and 3; a signed scale for each group; d."""
    j = c % 4
    nibbles = data + n_blocks * 64
    low = block * 128 + j // 2 * 64 + j % 2 * 16
    signed = (data + n_blocks * 192).to(tl.pointer_type(tl.int8))
    place = block * 16 + j // 2 * 8 + j % 2
    return (
        load_bytes(data, block * 64 + j * 16, lane),
        load_bytes(nibbles, low, lane),
        load_bytes(nibbles, low + 32, lane),
        load_half(data + n_blocks * 208, block),
        tl.load(signed + place),
        tl.load(signed + place + 2),
        tl.load(signed + place + 4),
        tl.load(signed + place + 6),
    )


@triton.jit
def dequantise_q6_k(parts, c, GROUP: tl.constexpr):
    """d * scale * (q - 32)."""
    scale = parts[3] * parts[4 + GROUP].to(tl.float32)
    HIGH: tl.constexpr = GROUP // 2
    # The pair stands at bit 2 * GROUP and belongs above the nibble, at 4 or 8.
    pair = _pairs(parts[0], GROUP) * 2.0 ** (4 + 4 * HIGH - 2 * GROUP)
    code = _nibbles(parts[1 + GROUP % 2], HIGH) + pair
    return code, scale * (SUBNORMAL / 16**HIGH), -32 * scale


@triton.jit
def load_iq4_xs(data, scales, n_blocks, block, row, c, lane, cols):
    """Nibbles; d and the scales' high bits in a word; their low bits in another."""
    head = data + n_blocks * 128
    nibbles = load_bytes(data, block * 128 + c % 8 * 16, lane)
    return nibbles, load_words(head, block * 2), load_words(head, block * 2 + 1)


@triton.jit
def dequantise_iq4_xs(parts, c, GROUP: tl.constexpr):
    """d * (scale - 32) * table[q]; the code is no subnormal, so UP is taken back here."""
    j = (c % 8).to(tl.uint32)
    low = (parts[2] >> (4 * j)) & 15
    high = (parts[1] >> (16 + 2 * j)) & 3
    scale = low_half(parts[1]) * ((low | (high << 4)).to(tl.float32) - 32)
    return iq4(parts[0], GROUP), scale * 2.0**-100
