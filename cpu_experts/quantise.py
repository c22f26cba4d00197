"""float32 activations to int8: symmetric, a float32 scale per block of 32 (Q8_32) or 256 (Q8_K).

32 values at a time, in LLVM's vectors, which become what the CPU has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cpu_experts.cache import inner
from cpu_experts.formats import FLOAT, Q8_32
from cpu_experts.layout import padded, row_stride, scales_offset, sums16_offset, sums32_offset
from cpu_experts.memory import (
    I32,
    I64,
    load_f32,
    pointer,
    store_f32,
    store_i8,
    store_i64,
)

I16 = ir.IntType(16)
_FLOATS, _BYTES = ir.VectorType(ir.FloatType(), 32), ir.VectorType(ir.IntType(8), 32)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """An LLVM intrinsic on vectors; it has the type of its last value, or of its lanes (reduce)."""
    kind = values[-1].type
    result = kind.element if "reduce" in name else kind
    quick = ("nnan",) if "fmax" in name else ()
    function = ir.FunctionType(result, [value.type for value in values])
    callee = cgutils.get_or_insert_function(builder.module, function, name)
    return builder.call(callee, values, fastmath=quick)


def _load(builder: Any, address: Any, kind: ir.VectorType) -> Any:
    return builder.load(pointer(builder, address, kind), align=1)


def _store(builder: Any, value: Any, address: Any, kind: ir.Type) -> None:
    builder.store(value, pointer(builder, address, kind), align=1)


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    lanes = ir.Constant(ir.VectorType(I32, 32), [0] * 32)
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), lanes)


@intrinsic
def _largest32(typingctx: Any, x: Any) -> Any:
    """The largest magnitude of 32 float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sizes = _call(builder, "llvm.fabs.v32f32", _load(builder, args[0], _FLOATS))
        return _call(builder, "llvm.vector.reduce.fmax.v32f32", sizes)

    return types.float32(types.int64), codegen


@intrinsic
def _round32(typingctx: Any, x: Any, inverse: Any, values: Any) -> Any:
    """32 float32 times `inverse`, rounded, as int8 at `values`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scaled = builder.fmul(_load(builder, args[0], _FLOATS), _splat(builder, args[1]))
        whole = builder.fptosi(_call(builder, "llvm.rint.v32f32", scaled), ir.VectorType(I32, 32))
        _store(builder, builder.trunc(whole, _BYTES), args[2], _BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), codegen


@intrinsic
def _round_rest32(typingctx: Any, x: Any, scale: Any, values: Any, inverse: Any, rest: Any) -> Any:
    """(x - scale * values) * inverse, rounded, as 32 int8 at `rest`; 127 where it is 128."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, scale, values, inverse, out = args
        rounded = builder.sitofp(_load(builder, values, _BYTES), _FLOATS)
        product = builder.fmul(_splat(builder, scale), rounded)
        left = builder.fsub(_load(builder, x, _FLOATS), product)
        scaled = builder.fmul(left, _splat(builder, inverse))
        most = ir.Constant(_FLOATS, [127.0] * 32)
        scaled = builder.select(builder.fcmp_ordered("<", scaled, most), scaled, most)
        whole = builder.fptosi(_call(builder, "llvm.rint.v32f32", scaled), ir.VectorType(I32, 32))
        _store(builder, builder.trunc(whole, _BYTES), out, _BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.float32, types.int64), codegen


@intrinsic
def _store_sums(typingctx: Any, values: Any, sums16: Any, sums32: Any) -> Any:
    """The int16 sums of 32 int8 values and of their halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = builder.sext(_load(builder, args[0], _BYTES), ir.VectorType(I16, 32))
        total = ir.Constant(I16, 0)
        for half in range(2):
            lanes = ir.Constant(ir.VectorType(I32, 16), [*range(16 * half, 16 * half + 16)])
            part = builder.shuffle_vector(words, words, lanes)
            part = _call(builder, "llvm.vector.reduce.add.v16i16", part)
            _store(builder, part, builder.add(args[1], ir.Constant(I64, 2 * half)), I16)
            total = builder.add(total, part)
        _store(builder, total, args[2], I16)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@inner
def _quantise_block(source, n, values, scale_place):
    """n float32 at `source` as n int8 and their scale; n a multiple of 32."""
    largest = np.float32(0.0)
    for i in range(0, n, 32):
        other = _largest32(source + 4 * i)
        largest = other if other > largest else largest
    # A scale below float32's normal range would make its inverse infinite: such a block is zero.
    scale = largest / np.float32(127.0)
    inverse = np.float32(0.0)
    if scale >= np.float32(1e-37):
        inverse = np.float32(1.0) / scale
    else:
        scale = np.float32(0.0)
    store_f32(scale_place, scale)
    for i in range(0, n, 32):
        _round32(source + 4 * i, inverse, values + i)


@inner
def _clear(target, n):
    for i in range(n):
        store_i8(target + i, 0)


@inner
def quantise_part(kind, x, start, n, cols, out):
    """n float32 at `x` as columns `start`... (whole blocks) of the row of `cols` at `out`."""
    if kind == FLOAT:
        for i in range(n):
            store_f32(out + 4 * (start + i), load_f32(x + 4 * i))
        return
    block = 32 if kind == Q8_32 else 256
    scales, sums32, sums16 = (
        out + scales_offset(cols),
        out + sums32_offset(cols, block),
        out + sums16_offset(cols, block),
    )
    for b in range(start // block, (start + n) // block):
        source = x + 4 * (b * block - start)
        _quantise_block(source, block, out + b * block, scales + 4 * b)
    end = start + n
    if end == cols and end % 256:
        _clear(out + end, padded(cols) - end)
        _clear(scales + end // block * 4, (padded(cols) - end) // block * 4)
        end = padded(cols)
    for s in range(start // 32, end // 32):
        _store_sums(out + 32 * s, sums16 + 4 * s, sums32 + 2 * s)


@inner
def _second_term(kind, x, cols, row, out):
    """What the int8 row at `row` left of x, as an int8 row at `out` with 1/256 of its scales.

    Kernels rely on that ratio: 256 times the first dot product and the second are one integer.
    """
    block = 32 if kind == Q8_32 else 256
    scales, sums32, sums16 = (
        scales_offset(cols),
        sums32_offset(cols, block),
        sums16_offset(cols, block),
    )
    for b in range(cols // block):
        scale = load_f32(row + scales + 4 * b)
        inverse = np.float32(0.0)
        if scale >= np.float32(1e-34):  # 256 times the inverse of less might be infinite
            inverse = np.float32(256.0) / scale
        store_f32(out + scales + 4 * b, scale * np.float32(1 / 256))
        for i in range(b * block, (b + 1) * block, 32):
            _round_rest32(x + 4 * i, scale, row + i, inverse, out + i)
    _clear(out + cols, padded(cols) - cols)
    for b in range(cols // block, padded(cols) // block):
        store_f32(out + scales + 4 * b, 0.0)
    for s in range(padded(cols) // 32):
        _store_sums(out + 32 * s, out + sums16 + 4 * s, out + sums32 + 2 * s)


@inner
def prepare(kind, x, n_rows, cols, rows, table, terms):
    """Quantise rows into `rows` (or leave floats where they are) and list their addresses.

    With two terms each row is two: itself, and what its rounding left. Their products with a weight
    add up to one with activations of about 15 bits.
    """
    stride, first = row_stride(kind, cols), np.int64(0)
    for t in range(n_rows):
        source, row, place = x + 4 * t * cols, rows + t * terms * stride, table + 8 * t * terms
        if kind == FLOAT:
            store_i64(place, source)
            continue
        quantise_part(kind, source, first, cols, cols, row)
        store_i64(place, row)
        if terms == 2:
            _second_term(kind, source, cols, row, row + stride)
            store_i64(place + 8, row + stride)
