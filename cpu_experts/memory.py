"""Raw memory inside Numba: loads, stores, atomics and calls at addresses (int64).

Kernels meet their weights as addresses, because one matrix may lie in a memory-mapped GGUF stack
and the next in an array of its own, at any alignment. Nothing here checks a bound: callers own
that.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from cpu_experts.cache import inner
from cpu_experts.cpu import is_zen

I64 = ir.IntType(64)
I32 = ir.IntType(32)
_ON_X86 = platform.machine() in ("x86_64", "AMD64")


def pointer(builder: Any, address: Any, ir_type: ir.Type) -> Any:
    """The LLVM pointer to `ir_type` at an int64 address."""
    return builder.inttoptr(address, ir_type.as_pointer())


def _loader(ir_type: ir.Type, result: types.Type, convert: str | None = None) -> Any:
    """An intrinsic `load(address)`; `convert` names the builder method that widens to `result`."""

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(pointer(builder, args[0], ir_type), align=1)
            if convert is None:
                return value
            return getattr(builder, convert)(value, context.get_value_type(result))

        return result(types.int64), codegen

    return load


def _storer(ir_type: ir.Type, value_type: types.Type, convert: str | None = None) -> Any:
    """An intrinsic `store(address, value)`, narrowing the value with the builder's `convert`."""

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = args[1]
            if convert is not None:
                value = getattr(builder, convert)(value, ir_type)
            builder.store(value, pointer(builder, args[0], ir_type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, value_type), codegen

    return store


load_u8 = _loader(ir.IntType(8), types.int32, "zext")
load_i8 = _loader(ir.IntType(8), types.int32, "sext")
load_u16 = _loader(ir.IntType(16), types.int32, "zext")
load_i16 = _loader(ir.IntType(16), types.int32, "sext")
load_i32 = _loader(I32, types.int32)
load_i64 = _loader(I64, types.int64)
load_f32 = _loader(ir.FloatType(), types.float32)
load_f64 = _loader(ir.DoubleType(), types.float64)
store_i8 = _storer(ir.IntType(8), types.int32, "trunc")
store_i16 = _storer(ir.IntType(16), types.int32, "trunc")
store_i32 = _storer(I32, types.int32)
store_i64 = _storer(I64, types.int64)
store_f32 = _storer(ir.FloatType(), types.float32)


def _pointer_to(ir_type: ir.Type, value_type: types.Type) -> Any:
    """An intrinsic: an address as Numba's pointer to values."""

    @intrinsic
    def cast(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return pointer(builder, args[0], ir_type)

        return types.CPointer(value_type)(types.int64), codegen

    return cast


_float_pointer = _pointer_to(ir.FloatType(), types.float32)
_int_pointer = _pointer_to(I32, types.int32)


@inner
def floats(address, shape):
    """The float32 at an address as an array: LLVM makes vector instructions of loops over arrays,
    but not of loops over addresses.
    """
    return carray(_float_pointer(address), shape)


@inner
def ints(address, shape):
    """The int32 at an address as an array."""
    return carray(_int_pointer(address), shape)


@intrinsic
def bits_to_f32(typingctx: Any, bits: Any) -> Any:
    """The float32 whose bit pattern is the int32 `bits`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@inner
def load_f16(address):
    """float16 at `address` as float32, by integer arithmetic: CPUs without F16C run it too."""
    half = load_u16(address)
    # The exponent's bias differs by 112; multiplying by 2**112 also makes subnormal halves right.
    value = bits_to_f32((half & 0x7FFF) << 13)
    value = value * bits_to_f32(0x77800000)
    bits = float_bits(value)
    if (half & 0x7C00) == 0x7C00:
        bits |= 0x7F800000
    return bits_to_f32(bits | ((half & 0x8000) << 16))


@intrinsic
def float_bits(typingctx: Any, value: Any) -> Any:
    """The bit pattern of a float32 as int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), codegen


@inner
def load_bf16(address):
    """bfloat16 at `address` as float32."""
    return bits_to_f32(load_u16(address) << 16)


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at `address`, sequentially consistent; returns the value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at `address`; later reads are not moved before it (acquire)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Set the int64 at `address`, sequentially consistent."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], pointer(builder, args[0], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def compare_and_swap(typingctx: Any, address: Any, expected: Any, wanted: Any) -> Any:
    """True when the int64 at `address` was `expected` and is now `wanted`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = pointer(builder, args[0], I64)
        pair = builder.cmpxchg(where, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def spin_pause(typingctx: Any) -> Any:
    """Tell the core that this is a waiting loop, where it has a word for that."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _ON_X86:
            pause = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(), codegen


def _caller(n_arguments: int) -> Any:
    """An intrinsic that calls the C function `void f(int64 * n)` at an address."""

    @intrinsic
    def call(typingctx: Any, address: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = ir.FunctionType(ir.VoidType(), [I64] * n_arguments)
            values = [builder.extract_value(args[1], i) for i in range(n_arguments)]
            builder.call(pointer(builder, args[0], function), values)
            return context.get_dummy_value()

        return types.void(types.int64, types.UniTuple(types.int64, n_arguments)), codegen

    return call


call_kernel = _caller(11)
call_item = _caller(4)


def _prefetch(locality: int) -> Any:
    """An intrinsic that asks for the cache line at an address; any address is allowed."""

    @intrinsic
    def ask(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            where = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
            flags = [ir.Constant(I32, flag) for flag in (0, locality, 1)]  # read, keep, data
            kind = ir.FunctionType(ir.VoidType(), [where.type, I32, I32, I32])
            builder.call(
                cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"),
                [where, *flags],
            )
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return ask


prefetch = _prefetch(3)  # into the nearest cache
# What comes from memory in long runs. Zen 4 waits for room in its first cache's few buffers, and
# reads up to 1.6 times as fast by way of the second; Intel's cores lose a tenth by that.
prefetch_stream = _prefetch(2 if is_zen() else 3)
