"""512-bit vectors inside Numba: a type per register shape, and the operations our kernels need.

Kernels are written with these like C with intrinsics; LLVM keeps the values in registers. Every
name here that has no 256 in it is 512 bits wide. Only kernels of the avx512_vnni tier use this
file: what it emits ends the process on a CPU without those instructions (cpu.py decides before
anything is compiled).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from cpu_experts.memory import I32, pointer

I8, I16, F16, F32 = ir.IntType(8), ir.IntType(16), ir.HalfType(), ir.FloatType()


class _Vector(types.Type):
    """A vector register: `lane` values of LLVM's type, as many as fit `bits`."""

    def __init__(self, name: str, ir_type: ir.VectorType) -> None:
        super().__init__(name=name)
        self.ir_type = ir_type


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: _Vector) -> None:
        super().__init__(manager, fe_type, fe_type.ir_type)


def vector(lane: ir.Type, lanes: int) -> ir.VectorType:
    """LLVM's vector type."""
    return ir.VectorType(lane, lanes)


INTS = _Vector("i32x16", vector(I32, 16))  # 512 bits of whatever integers an operation says
INTS256 = _Vector("i32x8", vector(I32, 8))
FLOATS = _Vector("f32x16", vector(F32, 16))
FLOATS256 = _Vector("f32x8", vector(F32, 8))


def operation(
    result: types.Type, arguments: tuple[types.Type, ...], emit: Callable[..., Any], name: str = ""
) -> Any:
    """An intrinsic of fixed types whose code `emit(builder, *values)` writes.

    One that is handed to compiled functions as an argument needs a `name` for its code: it is all
    that tells their symbols apart, and kernels from several processes' caches meet in one.
    """

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = emit(builder, *args)
        return context.get_dummy_value() if result == types.void else value

    # Numba reads the number of arguments off the function.
    def none(typingctx: Any) -> Any:
        return result(), lower

    def one(typingctx: Any, a: Any) -> Any:
        return result(*arguments), lower

    def two(typingctx: Any, a: Any, b: Any) -> Any:
        return result(*arguments), lower

    def three(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        return result(*arguments), lower

    def five(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return result(*arguments), lower

    shapes = {0: none, 1: one, 2: two, 3: three, 5: five}
    shape = shapes[len(arguments)]
    shape.__name__ = name or shape.__name__
    return intrinsic(shape)


def call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    """Call an LLVM intrinsic by name."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def constant(lane: ir.Type, values: list[int]) -> ir.Constant:
    """A vector constant."""
    return ir.Constant(vector(lane, len(values)), [ir.Constant(lane, v) for v in values])


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """`value` in every lane."""
    kind = vector(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    mask = ir.Constant(vector(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)


def shuffle(builder: Any, value: Any, lanes: list[int]) -> Any:
    """`value` with its lanes in the order given."""
    return builder.shuffle_vector(value, value, constant(I32, lanes))


def cast(builder: Any, value: Any, lane: ir.Type) -> Any:
    """The same bits as lanes of another type."""
    bits = value.type.count * _bits(value.type.element)
    return builder.bitcast(value, vector(lane, bits // _bits(lane)))


def _bits(lane: ir.Type) -> int:
    if isinstance(lane, ir.IntType):
        return int(lane.width)
    return 16 if isinstance(lane, ir.HalfType) else 32


def load_vector(builder: Any, address: Any, lane: ir.Type, lanes: int) -> Any:
    """Unaligned load."""
    return builder.load(pointer(builder, address, vector(lane, lanes)), align=1)


def store_vector(builder: Any, value: Any, address: Any) -> None:
    """Unaligned store."""
    builder.store(value, pointer(builder, address, value.type), align=1)


def prefetch_line(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, into the nearest cache."""
    where = builder.inttoptr(address, I8.as_pointer())
    flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), where, *flags)


def dot_bytes(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """total + sums of 4 products of unsigned and signed bytes, per 32-bit lane (VPDPBUSD)."""
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, unsigned, signed)


def dot_words(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total + sums of 2 products of signed 16-bit words, per 32-bit lane (VPDPWSSD)."""
    return call(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, total, a, b)
