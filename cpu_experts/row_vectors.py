"""Vector operations that only the kernels for few tokens need, beside those of vectors.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from cpu_experts.memory import I32, I64, pointer
from cpu_experts.simd import (
    F16,
    F32,
    FLOATS,
    FLOATS256,
    I8,
    I16,
    INTS,
    INTS256,
    call,
    cast,
    constant,
    load_vector,
    operation,
    shuffle,
    store_vector,
    vector,
)
from cpu_experts.vectors import ADDRESS, repeat


def _subtract_product(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", x.type, builder.fneg(x), y, z)


def _join_zeros(builder: Any, value: Any) -> Any:
    zeros = ir.Constant(value.type, [0] * 8)
    return builder.shuffle_vector(value, zeros, constant(I32, list(range(16))))


subtract_product = operation(FLOATS, (FLOATS, FLOATS, FLOATS), _subtract_product)  # z - x * y
subtract_words = operation(INTS, (INTS, INTS), lambda b, x, y: b.sub(x, y))
widen_words = operation(INTS, (INTS256,), _join_zeros)  # the upper half is 0
shift_words_left8 = operation(INTS, (INTS,), lambda b, x: b.shl(x, constant(I32, [8] * 16)))


def _fma256(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, "llvm.fma.v8f32", x.type, x, y, z)


def _low_blocks(builder: Any, value: Any) -> Any:
    zeros = ir.Constant(value.type, [0.0] * 8)
    return builder.shuffle_vector(value, zeros, constant(I32, [0, 1, 2, 3] + [8] * 4))


low_blocks = operation(FLOATS256, (FLOATS256,), _low_blocks)  # the upper four are 0
fma256 = operation(FLOATS256, (FLOATS256, FLOATS256, FLOATS256), _fma256)


def _strided(builder: Any, address: Any, lane: Any, n_bytes: int) -> Any:
    """8 lanes that lie `n_bytes` apart.

    Where 64 bytes hold 4 of them, two loads and a permute: one by one they are what a row of
    32-value blocks spends most of its time on.
    """
    size = lane.width // 8
    if 3 * n_bytes + size <= 64 and n_bytes % size == 0:
        second = builder.add(address, ir.Constant(I64, 4 * n_bytes))
        both = [load_vector(builder, place, lane, 64 // size) for place in (address, second)]
        step = n_bytes // size
        lanes = [*range(0, 4 * step, step), *range(64 // size, 64 // size + 4 * step, step)]
        return builder.shuffle_vector(*both, constant(I32, lanes))
    value = ir.Constant(vector(lane, 8), ir.Undefined)
    for i in range(8):
        place = builder.add(address, ir.Constant(I64, i * n_bytes))
        one = builder.load(pointer(builder, place, lane), align=1)
        value = builder.insert_element(value, one, ir.Constant(I32, i))
    return value


def _strided_halves(builder: Any, address: Any, n_bytes: int) -> Any:
    words = _strided(builder, address, I16, n_bytes)
    return builder.fpext(builder.bitcast(words, vector(F16, 8)), vector(F32, 8))


def strided_halves(n_bytes: int) -> Any:
    """An operation: 8 float16, `n_bytes` apart, as float32."""
    return operation(FLOATS256, (ADDRESS,), partial(_strided_halves, n_bytes=n_bytes))


def _strided_pairs(builder: Any, address: Any, n_bytes: int) -> Any:
    halves = builder.bitcast(_strided(builder, address, I32, n_bytes), vector(F16, 16))
    return builder.fpext(halves, vector(F32, 16))


def strided_pairs(n_bytes: int) -> Any:
    """An operation: 8 pairs of float16, `n_bytes` apart, as float32."""
    return operation(FLOATS, (ADDRESS,), partial(_strided_pairs, n_bytes=n_bytes))


def _every_other(builder: Any, value: Any, first: int) -> Any:
    return shuffle(builder, value, list(range(first, 16, 2)))


even_floats = operation(FLOATS256, (FLOATS,), partial(_every_other, first=0))
odd_floats = operation(FLOATS256, (FLOATS,), partial(_every_other, first=1))


def _pack_words(builder: Any, x: Any, y: Any) -> Any:
    return cast(builder, call(builder, "llvm.x86.avx512.packssdw.512", vector(I16, 32), x, y), I32)


def _look_up256(builder: Any, table: Any, index: Any) -> Any:
    values = [cast(builder, value, I8) for value in (table, index)]
    return cast(builder, call(builder, "llvm.x86.avx2.pshuf.b", values[0].type, *values), I32)


def _choose_words(builder: Any, index: Any, value: Any) -> Any:
    wide = builder.shuffle_vector(value, value, constant(I32, [*range(8)] * 2))
    values = [cast(builder, v, I16) for v in (wide, index)]
    return cast(
        builder, call(builder, "llvm.x86.avx512.permvar.hi.512", values[0].type, *values), I32
    )


# What vnni.py's loop needs.
load_twice128 = operation(INTS256, (ADDRESS,), lambda b, a: repeat(b, a, I32, 4, 2))
load_four128 = operation(INTS, (ADDRESS,), lambda b, a: repeat(b, a, I32, 4, 4))
zero256 = operation(INTS256, (), lambda b: constant(I32, [0] * 8))
multiply_lanes = operation(INTS, (INTS, INTS), lambda b, x, y: b.mul(x, y))


def shift_words_left256(count: int) -> Any:
    """An operation: 32-bit lanes of 256 bits shifted left."""
    return operation(INTS256, (INTS256,), lambda b, x: b.shl(x, constant(I32, [count] * 8)))


def add_to_words(number: int) -> Any:
    """An operation: 32-bit lanes plus a constant."""
    return operation(INTS, (INTS,), lambda b, x: b.add(x, constant(I32, [number] * 16)))


def add_to_words16(number: int) -> Any:
    """An operation: 16-bit lanes of 256 bits plus a constant."""
    more = constant(I16, [number] * 16)
    return operation(INTS256, (INTS256,), lambda b, x: cast(b, b.add(cast(b, x, I16), more), I32))


def _quarters(builder: Any, x: Any, y: Any, first: int) -> Any:
    lanes = [4 * q + i for q in range(first, 8, 2) for i in range(4)]
    return builder.shuffle_vector(x, y, constant(I32, lanes))


even_quarters = operation(INTS, (INTS, INTS), partial(_quarters, first=0))  # 128 bits of x and of y
odd_quarters = operation(INTS, (INTS, INTS), partial(_quarters, first=1))


pack_words = operation(INTS, (INTS, INTS), _pack_words)  # as int16; 4 of x, 4 of y in 128 bits
look_up_bytes256 = operation(INTS256, (INTS256, INTS256), _look_up256)
choose_words = operation(INTS, (INTS, INTS256), _choose_words)  # word i is value[index[i]]


def multiply16(values: list[int]) -> Any:
    """An operation: 16-bit lanes times constants, the low 16 bits."""
    by = constant(I16, values)
    return operation(INTS, (INTS,), lambda b, x: cast(b, b.mul(cast(b, x, I16), by), I32))


def add_bytes(values: list[int]) -> Any:
    """An operation: bytes plus constants, modulo 256."""
    more = constant(I8, values)
    return operation(INTS, (INTS,), lambda b, x: cast(b, b.add(cast(b, x, I8), more), I32))


def words_constant(values: list[int]) -> Any:
    """An operation that gives 32 constant 16-bit lanes."""
    return operation(INTS, (), lambda b: cast(b, constant(I16, values), I32))


def words_constant256(values: list[int]) -> Any:
    """An operation that gives 16 constant 16-bit lanes."""
    return operation(INTS256, (), lambda b: cast(b, constant(I16, values), I32))


def _dot_bytes256(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    return call(builder, "llvm.x86.avx512.vpdpbusd.256", total.type, total, unsigned, signed)


def _split_words(builder: Any, source: Any, target: Any) -> None:
    words, four = load_vector(builder, source, I16, 16), constant(I16, [4] * 16)
    high = builder.ashr(builder.add(words, constant(I16, [8] * 16)), four)
    low = builder.sub(words, builder.shl(high, four))
    for i, part in enumerate((high, low)):
        place = builder.add(target, ir.Constant(I64, 16 * i))
        store_vector(builder, builder.trunc(part, vector(I8, 16)), place)


def _store_factors(builder: Any, halves: Any, scale: Any, target: Any) -> None:
    values = builder.fpext(load_vector(builder, halves, F16, 4), vector(F32, 4))
    one = load_vector(builder, scale, F32, 1)
    scales = builder.shuffle_vector(one, one, constant(I32, [0] * 4))
    store_vector(builder, builder.fmul(values, scales), target)


dot_bytes256 = operation(INTS256, (INTS256, INTS256, INTS256), _dot_bytes256)
# (source, target): 16 int16 of at most 2,032 as 16 bytes and 16 more: 16 times the first are added.
split_words = operation(types.void, (ADDRESS, ADDRESS), _split_words)
# (halves, scale, target): 4 float16 times a float32, as float32.
store_factors = operation(types.void, (ADDRESS, ADDRESS, ADDRESS), _store_factors)
