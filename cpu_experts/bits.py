"""Moves of bits within bytes of a 512-bit vector, one instruction where the CPU has GFNI.

VGF2P8AFFINEQB multiplies every byte with a matrix of 8 x 8 bits, which can be another one for each
64 bits: it shifts and masks at once, by different counts in different places. Without it (Cascade
Lake) a shift and a mask do the same. Which it is depends on the CPU that the code is compiled for.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cpu_experts import cpu
from cpu_experts.memory import I64
from cpu_experts.simd import I8, I16, INTS, call, cast, constant, operation, vector


def _matrix(count: int, mask: int) -> int:
    """The 8 x 8 bits that bring bit `i + count` to bit i, where `mask` has bit i."""
    rows = 0
    for i in range(8):
        if mask >> i & 1 and 0 <= i + count < 8:
            rows |= 1 << (i + count) << 8 * (7 - i)
    return rows


def move_bits(*counts: int, mask: int) -> Any:
    """An operation: bytes shifted right (left below 0) by a count for each 128 bits, AND `mask`.

    All counts go one way, and `mask` has no bit that comes from a neighbouring byte.
    """
    matrices = constant(I64, [_matrix(count, mask) for count in counts for _ in range(2)])
    by = constant(I16, [abs(count) for count in counts for _ in range(8)])
    left = min(counts) < 0

    def emit(builder: Any, value: Any) -> Any:
        if "gfni" in cpu.features():
            kind = vector(I8, 64)
            values = cast(builder, value, I8), builder.bitcast(matrices, kind)
            name = "llvm.x86.vgf2p8affineqb.512"
            moved = call(builder, name, kind, *values, ir.Constant(I8, 0))
            return cast(builder, moved, value.type.element)
        words = cast(builder, value, I16)
        moved = builder.shl(words, by) if left else builder.lshr(words, by)
        masks = constant(I16, [mask * 0x0101] * 32)
        return cast(builder, builder.and_(moved, masks), value.type.element)

    return operation(INTS, (INTS,), emit)
