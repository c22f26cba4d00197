"""Vector operations that only the kernels for few tokens need, beside those of vectors.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir

from cpu_experts.memory import I32
from cpu_experts.simd import (
    F16,
    F32,
    FLOATS,
    INTS,
    INTS256,
    call,
    constant,
    load_vector,
    operation,
    vector,
)
from cpu_experts.vectors import ADDRESS


def _spread_f16(builder: Any, address: Any, lane: int) -> Any:
    """One of 4 float16 at an address as float32 in all lanes: one conversion serves two of them."""
    value = builder.fpext(load_vector(builder, address, F16, 4), vector(F32, 4))
    return builder.shuffle_vector(value, value, constant(I32, [lane] * 16))


def spread_f16(lane: int) -> Any:
    """An operation: float16 number `lane` of the 4 at an address, as float32 in all lanes."""
    return operation(FLOATS, (ADDRESS,), partial(_spread_f16, lane=lane))


def _subtract_product(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", x.type, builder.fneg(x), y, z)


def _join_zeros(builder: Any, value: Any) -> Any:
    zeros = ir.Constant(value.type, [0] * 8)
    return builder.shuffle_vector(value, zeros, constant(I32, list(range(16))))


subtract_product = operation(FLOATS, (FLOATS, FLOATS, FLOATS), _subtract_product)  # z - x * y
subtract_words = operation(INTS, (INTS, INTS), lambda b, x, y: b.sub(x, y))
widen_words = operation(INTS, (INTS256,), _join_zeros)  # the upper half is 0
