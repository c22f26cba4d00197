"""Moves of bits within bytes of a vector, one instruction where the CPU has GFNI.

VGF2P8AFFINEQB multiplies every byte with a matrix of 8 x 8 bits, which can be another one for each
64 bits, and flips bits: it shifts, masks and adds at once, differently in different places. Without
it (Cascade Lake) shifts and masks do the same. Which it is depends on the CPU that the code is
compiled for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from cpu_experts import cpu
from cpu_experts.memory import I64
from cpu_experts.simd import I8, I16, INTS, INTS256, call, cast, constant, operation, vector

_Bits = Sequence[int | None]  # from which bit each bit of a byte comes, the lowest first


def _matrix(bits: _Bits) -> int:
    rows = 0
    for i, source in enumerate(bits):
        if source is not None:
            rows |= 1 << source << 8 * (7 - i)
    return rows


def _by_affine(builder: Any, value: Any, lanes: Sequence[_Bits], flips: int) -> Any:
    kind = vector(I8, 16 * len(lanes))
    matrices = constant(I64, [_matrix(bits) for bits in lanes for _ in range(2)])
    name = f"llvm.x86.vgf2p8affineqb.{128 * len(lanes)}"
    values = cast(builder, value, I8), builder.bitcast(matrices, kind)
    return call(builder, name, kind, *values, ir.Constant(I8, flips))


def _by_shifts(builder: Any, value: Any, lanes: Sequence[_Bits], flips: int) -> Any:
    """A shift each way and a mask for each group of bits that go equally far."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, sources in enumerate(zip(*lanes, strict=True)):
        far = tuple(0 if source is None else source - i for source in sources)
        masks = groups.setdefault(far, [0] * len(lanes))
        for lane, source in enumerate(sources):
            masks[lane] |= 0 if source is None else 1 << i
    words = cast(builder, value, I16)
    result = constant(I16, [flips * 0x0101] * words.type.count)
    for far, masks in groups.items():
        left, right = (
            constant(I16, [max(sign * count, 0) for count in far for _ in range(8)])
            for sign in (-1, 1)
        )
        moved = builder.lshr(builder.shl(words, left), right)
        kept = constant(I16, [mask * 0x0101 for mask in masks for _ in range(8)])
        result = builder.xor(result, builder.and_(moved, kept))
    return result


def pick_bits(*lanes: _Bits, flips: int = 0) -> Any:
    """An operation: each bit of a byte is another bit of it, or 0; then those of `flips` flip.

    `lanes` says from where, for each 128 bits of a vector of 256 or 512.
    """

    def emit(builder: Any, value: Any) -> Any:
        pick = _by_affine if "gfni" in cpu.features() else _by_shifts
        return cast(builder, pick(builder, value, lanes, flips), value.type.element)

    kind = INTS if len(lanes) == 4 else INTS256
    return operation(kind, (kind,), emit)


def move_bits(*counts: int, mask: int, flips: int = 0) -> Any:
    """An operation: bytes shifted right (left below 0) by a count for each 128 bits, AND `mask`.

    `mask` has no bit that comes from a neighbouring byte. The bits of `flips` flip after that.
    """
    lanes = [[i + count if mask >> i & 1 else None for i in range(8)] for count in counts]
    return pick_bits(*lanes, flips=flips)
