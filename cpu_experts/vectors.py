"""The vector operations that kernels are written with, as Numba intrinsics over simd.py's types.

Integer vectors carry no lane type: `shift_right16` works on 16-bit lanes, `multiply_add16` on pairs
of them, and so on. Shift counts, masks and lane orders are compile-time constants: make an
operation for each (`shift_right16(4)`), at module level.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from cpu_experts import simd
from cpu_experts.memory import I32, I64
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
    splat,
    store_vector,
    vector,
)

ADDRESS = types.int64


def repeat(builder: Any, address: Any, lane: ir.Type, lanes: int, times: int) -> Any:
    """A load of `lanes` lanes, repeated over 512 bits."""
    value = load_vector(builder, address, lane, lanes)
    return shuffle(builder, value, list(range(lanes)) * times)


# Loads and stores.
load = operation(INTS, (ADDRESS,), lambda b, a: load_vector(b, a, I32, 16))
load256 = operation(INTS256, (ADDRESS,), lambda b, a: load_vector(b, a, I32, 8))
load_floats = operation(FLOATS, (ADDRESS,), lambda b, a: load_vector(b, a, F32, 16))
load_floats256 = operation(FLOATS256, (ADDRESS,), lambda b, a: load_vector(b, a, F32, 8))
store = operation(types.void, (INTS, ADDRESS), store_vector)
store_floats = operation(types.void, (FLOATS, ADDRESS), store_vector)
store256 = operation(types.void, (INTS256, ADDRESS), store_vector)
load_twice256 = operation(INTS, (ADDRESS,), lambda b, a: repeat(b, a, I32, 8, 2))


def _two_halves(builder: Any, low: Any, high: Any) -> Any:
    parts = [load_vector(builder, address, I32, 8) for address in (low, high)]
    return builder.shuffle_vector(*parts, constant(I32, list(range(16))))


def _widen16(builder: Any, address: Any) -> Any:
    """16 int8 at an address as 16-bit lanes."""
    wide = builder.sext(load_vector(builder, address, I8, 16), vector(I16, 16))
    return cast(builder, wide, I32)


load_halves = operation(INTS, (ADDRESS, ADDRESS), _two_halves)  # 32 bytes here and 32 there


def _doubled16(builder: Any, first: Any, second: Any) -> Any:
    parts = [load_vector(builder, address, I32, 4) for address in (first, second)]
    return builder.shuffle_vector(*parts, constant(I32, [*range(4)] * 2 + [*range(4, 8)] * 2))


load_doubled16 = operation(INTS, (ADDRESS, ADDRESS), _doubled16)  # 16 bytes twice, 16 more twice


load_i8_as_16 = operation(INTS256, (ADDRESS,), _widen16)


def _widen_f16(builder: Any, address: Any) -> Any:
    return builder.fpext(load_vector(builder, address, F16, 16), vector(F32, 16))


def _widen_bf16(builder: Any, address: Any) -> Any:
    wide = builder.zext(load_vector(builder, address, I16, 16), vector(I32, 16))
    return cast(builder, builder.shl(wide, constant(I32, [16] * 16)), F32)


def _widen_e4m3(builder: Any, address: Any) -> Any:
    """By way of float16, which has the same form: its subnormals widen at full speed."""
    wide = builder.zext(load_vector(builder, address, I8, 16), vector(I16, 16))
    low = builder.and_(wide, constant(I16, [0x7F] * 16))
    sign = builder.shl(builder.lshr(wide, constant(I16, [7] * 16)), constant(I16, [15] * 16))
    half = builder.or_(builder.shl(low, constant(I16, [7] * 16)), sign)
    kind = vector(F32, 16)
    value = builder.fpext(builder.bitcast(half, vector(F16, 16)), kind)
    scaled = builder.fmul(value, ir.Constant(kind, [256.0] * 16))
    is_nan = builder.icmp_unsigned("==", low, constant(I16, [0x7F] * 16))
    return builder.select(is_nan, ir.Constant(kind, [float("nan")] * 16), scaled)


# 16 weights of a float format as float32.
widen_f16 = operation(FLOATS, (ADDRESS,), _widen_f16)
widen_bf16 = operation(FLOATS, (ADDRESS,), _widen_bf16)
widen_e4m3 = operation(FLOATS, (ADDRESS,), _widen_e4m3)

# Constants and broadcasts.
zero_floats = operation(FLOATS, (), lambda b: ir.Constant(vector(F32, 16), [0.0] * 16))
zero = operation(INTS, (), lambda b: constant(I32, [0] * 16))
splat_float = operation(FLOATS, (types.float32,), lambda b, v: splat(b, v, 16))
splat_float256 = operation(FLOATS256, (types.float32,), lambda b, v: splat(b, v, 8))
splat_8_bytes = operation(
    INTS, (types.int64,), lambda b, v: b.bitcast(splat(b, v, 8), vector(I32, 16))
)


def bytes_constant(values: list[int]) -> Any:
    """An operation that gives 64 constant bytes."""
    return operation(INTS, (), lambda b: cast(b, constant(I8, values), I32))


# Integer arithmetic.
and_ = operation(INTS, (INTS, INTS), lambda b, x, y: b.and_(x, y))
or_ = operation(INTS, (INTS, INTS), lambda b, x, y: b.or_(x, y))
xor = operation(INTS, (INTS, INTS), lambda b, x, y: b.xor(x, y))
add_words = operation(INTS, (INTS, INTS), lambda b, x, y: b.add(x, y))
dot_bytes = operation(INTS, (INTS, INTS, INTS), simd.dot_bytes)
dot_words = operation(INTS, (INTS, INTS, INTS), simd.dot_words)
# 32-bit lanes times one number.
multiply_words = operation(INTS, (INTS, types.int32), lambda b, x, n: b.mul(x, splat(b, n, 16)))


def mask_bytes(mask: int) -> Any:
    """An operation: every byte AND a constant."""
    return operation(
        INTS, (INTS,), lambda b, x: b.and_(x, ir.Constant(x.type, [mask * 0x01010101] * 16))
    )


def mask_lanes(mask: int) -> Any:
    """An operation: every 32-bit lane AND a constant."""
    return operation(INTS, (INTS,), lambda b, x: b.and_(x, constant(I32, [mask] * 16)))


def flip_bytes(mask: int) -> Any:
    """An operation: every byte XOR a constant."""
    return operation(INTS, (INTS,), lambda b, x: b.xor(x, cast(b, constant(I8, [mask] * 64), I32)))


def _by_lane(counts: tuple[int, ...]) -> ir.Constant:
    """Shift counts for 16-bit lanes, one for each 128 bits."""
    return constant(I16, [count for count in counts for _ in range(8)])


def shift_right16(*counts: int) -> Any:
    """An operation: 16-bit lanes shifted right, by a count for each 128 bits."""
    by = _by_lane(counts)
    return operation(INTS, (INTS,), lambda b, x: cast(b, b.lshr(cast(b, x, I16), by), I32))


def shift_left16(*counts: int) -> Any:
    """An operation: 16-bit lanes shifted left, by a count for each 128 bits."""
    by = _by_lane(counts)
    return operation(INTS, (INTS,), lambda b, x: cast(b, b.shl(cast(b, x, I16), by), I32))


def _set_bits(builder: Any, value: Any, bits: Any, mask: int) -> Any:
    chosen = builder.bitcast(bits, vector(ir.IntType(1), 64))
    extra = builder.select(chosen, constant(I8, [mask] * 64), constant(I8, [0] * 64))
    return builder.or_(value, cast(builder, extra, I32))


def set_where(mask: int) -> Any:
    """An operation (value, bits): OR `mask` into byte i where bit i of the int64 is set."""
    return operation(INTS, (INTS, types.int64), partial(_set_bits, mask=mask))


def _look_up(builder: Any, table: Any, index: Any) -> Any:
    """VPSHUFB: in each 128 bits, byte i is table[index[i] & 15], or 0 where index[i] >= 128."""
    values = [cast(builder, v, I8) for v in (table, index)]
    result = call(builder, "llvm.x86.avx512.pshuf.b.512", values[0].type, *values)
    return cast(builder, result, I32)


look_up_bytes = operation(INTS, (INTS, INTS), _look_up)


def _multiply_add16_256(builder: Any, x: Any, y: Any) -> Any:
    values = [cast(builder, v, I16) for v in (x, y)]
    return call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), *values)


multiply_add16 = operation(INTS256, (INTS256, INTS256), _multiply_add16_256)


def shift_left16_256(count: int) -> Any:
    """An operation: 16-bit lanes of 256 bits shifted left."""
    by = constant(I16, [count] * 16)
    return operation(INTS256, (INTS256,), lambda b, x: cast(b, b.shl(cast(b, x, I16), by), I32))


words_as_lanes = operation(  # 16 words of 256 bits, sign-extended
    INTS, (INTS256,), lambda b, x: b.sext(cast(b, x, I16), vector(I32, 16))
)
low_half = operation(INTS256, (INTS,), lambda b, x: shuffle(b, x, list(range(8))))


# The low bits of x, dealt out to the places that the mask marks.
deposit_bits = operation(
    types.int64,
    (types.int64, types.int64),
    lambda b, x, mask: call(b, "llvm.x86.bmi.pdep.64", I64, x, mask),
)


def _choose_lanes(builder: Any, value: Any, index: Any) -> Any:
    return call(builder, "llvm.x86.avx512.permvar.si.512", value.type, value, index)


choose_lanes = operation(INTS, (INTS, INTS), _choose_lanes)  # VPERMD: lane i is value[index[i]]


def lanes_constant(values: list[int]) -> Any:
    """An operation that gives 16 constant 32-bit lanes."""
    return operation(INTS, (), lambda b: constant(I32, values))


# Float arithmetic.
def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)


def _to_floats(builder: Any, value: Any) -> Any:
    return builder.sitofp(value, vector(F32, value.type.count))


def _sum(builder: Any, value: Any) -> Any:
    kind = ir.FunctionType(F32, [F32, value.type])
    name = f"llvm.vector.reduce.fadd.v{value.type.count}f32"
    reduce = simd.cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(reduce, [ir.Constant(F32, 0.0), value], fastmath=("reassoc",))


def _join_floats(builder: Any, value: Any) -> Any:
    zeros = ir.Constant(value.type, [0.0] * 8)
    return builder.shuffle_vector(value, zeros, constant(I32, list(range(16))))


fma = operation(FLOATS, (FLOATS, FLOATS, FLOATS), _fma)
add_floats = operation(FLOATS, (FLOATS, FLOATS), lambda b, x, y: b.fadd(x, y))
multiply256 = operation(FLOATS256, (FLOATS256, FLOATS256), lambda b, x, y: b.fmul(x, y))
multiply = operation(FLOATS, (FLOATS, FLOATS), lambda b, x, y: b.fmul(x, y))
to_floats = operation(FLOATS, (INTS,), _to_floats)
to_floats256 = operation(FLOATS256, (INTS256,), _to_floats)
widen_floats = operation(FLOATS, (FLOATS256,), _join_floats)
sum_floats = operation(types.float32, (FLOATS,), _sum)
words_to_floats = operation(  # 8 int16 at an address
    FLOATS256, (ADDRESS,), lambda b, a: b.sitofp(load_vector(b, a, I16, 8), vector(F32, 8))
)


def _halves_to_floats(builder: Any, value: Any) -> Any:
    halves = builder.bitcast(builder.trunc(value, vector(I16, 16)), vector(F16, 16))
    return builder.fpext(halves, vector(F32, 16))


halves_to_floats = operation(FLOATS, (INTS,), _halves_to_floats)  # the low 16 bits of each lane


def signed_byte(which: int) -> Any:
    """An operation: a byte of each 32-bit lane, sign-extended."""
    up, down = constant(I32, [24 - 8 * which] * 16), constant(I32, [24] * 16)
    return operation(INTS, (INTS,), lambda b, x: b.ashr(b.shl(x, up), down))


# 32-bit lanes shifted right by a number that is not known before.
shift_right_by = operation(INTS, (INTS, types.int32), lambda b, x, n: b.lshr(x, splat(b, n, 16)))


def shift_right32(count: int) -> Any:
    """An operation: 32-bit lanes shifted right."""
    by = constant(I32, [count] * 16)
    return operation(INTS, (INTS,), lambda b, x: b.lshr(x, by))


def spread_floats(which: list[int]) -> Any:
    """An operation: 16 chosen lanes of 8 floats."""
    return operation(FLOATS, (FLOATS256,), partial(shuffle, lanes=which))
