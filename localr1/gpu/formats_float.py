"""Float formats on the GPU: how a chunk of 16 values is read. formats.py says what these return."""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import SUBNORMAL, as_float, byte_of, load_bytes


@triton.jit
def _load(plane, block, lane):
    """16 numbers from `16 * block` on; as four of `[..., 4]` if `lane` has 4."""
    first = plane + tl.expand_dims(block * 16, -1) + lane
    if lane.shape[len(lane.shape) - 1] == 4:
        parts = tl.load(first), tl.load(first + 4), tl.load(first + 8), tl.load(first + 12)
    else:
        parts = (tl.load(first),)
    return parts


@triton.jit
def load_f32(data, scales, n_blocks, block, row, c, lane, cols):
    """16 float32 of each chunk."""
    return _load(data.to(tl.pointer_type(tl.float32)), block, lane)


@triton.jit
def load_f16(data, scales, n_blocks, block, row, c, lane, cols):
    """16 float16 of each chunk."""
    return _load(data.to(tl.pointer_type(tl.float16)), block, lane)


@triton.jit
def load_bf16(data, scales, n_blocks, block, row, c, lane, cols):
    """16 bfloat16 of each chunk."""
    return _load(data.to(tl.pointer_type(tl.bfloat16)), block, lane)


@triton.jit
def dequantise_plain(parts, c, GROUP: tl.constexpr, BYTE: tl.constexpr):
    """The values themselves."""
    return (parts[0 if BYTE < 0 else BYTE].to(tl.float32),)


@triton.jit
def load_fp8(data, scales, n_blocks, block, row, c, lane, cols):
    """16 bytes of each chunk, and the scale of its tile of 128 x 128 weights."""
    tiles = tl.cdiv(cols, 128)
    scale = tl.load(scales + (row // 128) * tiles + c // 8)
    return load_bytes(data, block * 16, lane), scale


@triton.jit
def dequantise_fp8(parts, c, GROUP: tl.constexpr, BYTE: tl.constexpr):
    """e4m3 by moving its bits: exponent and mantissa to a float32's lower end, subnormals too."""
    byte = byte_of(parts[0], BYTE)
    code = as_float(((byte & 0x7F) << 20) | ((byte & 0x80) << 24))
    return code, parts[1] * (SUBNORMAL / 2.0**29)  # biases 127 and 7: code is 2**-120 of it
