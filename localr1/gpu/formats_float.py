"""Float formats on the GPU: how a chunk of 16 values is read. formats.py says what these return."""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import SUBNORMAL, as_float, load_chunk


@triton.jit
def load_f32(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """16 float32 of each chunk."""
    place = tl.expand_dims((first + c) * 16, -1) + lane
    return (tl.load(data.to(tl.pointer_type(tl.float32)) + place),)


@triton.jit
def load_f16(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """16 float16 of each chunk."""
    place = tl.expand_dims((first + c) * 16, -1) + lane
    return (tl.load(data.to(tl.pointer_type(tl.float16)) + place),)


@triton.jit
def load_bf16(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """16 bfloat16 of each chunk."""
    place = tl.expand_dims((first + c) * 16, -1) + lane
    bits = tl.load(data.to(tl.pointer_type(tl.uint16)) + place)
    return (as_float(bits.to(tl.uint32) << 16),)


@triton.jit
def codes_plain(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """The values themselves."""
    return parts[0].to(tl.float32)


@triton.jit
def scales_plain(parts, c, GROUP: tl.constexpr):
    """None."""
    return ()


@triton.jit
def load_fp8(data, scales, n_blocks, first, row, c, lane, cols, WORDS: tl.constexpr):
    """16 bytes of each chunk, and the scale of its tile of 128 x 128 weights."""
    tiles = tl.cdiv(cols, 128)
    scale = tl.load(scales + (row // 128) * tiles + c // 8)
    return load_chunk(data, first, c, lane, WORDS), scale


@triton.jit
def codes_fp8(parts, c, GROUP: tl.constexpr, WORDS: tl.constexpr):
    """e4m3 by moving its bits: exponent and mantissa to a float32's lower end, subnormals too."""
    return as_float(((parts[0] & 0x7F) << 20) | ((parts[0] & 0x80) << 24))


@triton.jit
def scales_fp8(parts, c, GROUP: tl.constexpr):
    """The tile's; biases are 127 and 7, so a code is 2**-120 of its value."""
    return (parts[1] * (SUBNORMAL / 2.0**29),)
