"""LLVM code of the tiles: the 16 x 16 transposition, and the product of a tile.

Written as loops in Python that emit instructions, because 16 accumulators must stay in registers.
tiles.py says what the memory looks like.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from cpu_experts.memory import I32, I64, pointer
from cpu_experts.simd import (
    F32,
    call,
    constant,
    dot_bytes,
    load_vector,
    operation,
    splat,
    store_vector,
    vector,
)

ADDRESS = types.int64


def _at(builder: Any, address: Any, offset: int) -> Any:
    return builder.add(address, ir.Constant(I64, offset))


def _interleave(builder: Any, a: Any, b: Any, width: int, high: int) -> Any:
    """In each 128 bits: runs of `width` lanes of a and b in turn, from their low or high halves."""
    lanes = []
    for base in range(0, 16, 4):
        for run in range(2 // width):
            first = base + 2 * high + run * width
            lanes += [first + i for i in range(width)] + [16 + first + i for i in range(width)]
    return builder.shuffle_vector(a, b, constant(I32, lanes))


def _take_lanes(builder: Any, a: Any, b: Any, odd: int) -> Any:
    """The 128-bit lanes (odd, odd + 2) of a, then those of b."""
    lanes = [4 * lane + i for lane in (odd, odd + 2, odd + 4, odd + 6) for i in range(4)]
    return builder.shuffle_vector(a, b, constant(I32, lanes))


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 lanes, transposed in four rounds of 16 shuffles."""
    pairs = [
        _interleave(builder, rows[i], rows[i + 1], 1, high)
        for i in range(0, 16, 2)
        for high in (0, 1)
    ]
    fours = []  # fours[4 * group + column]: column of 4 rows, in each 128 bits
    for group in range(0, 16, 4):
        for half in (0, 1):
            for high in (0, 1):
                a, b = pairs[group + half], pairs[group + 2 + half]
                fours.append(_interleave(builder, a, b, 2, high))
    out = [None] * 16
    for column in range(4):
        a, b, c, d = (fours[4 * group + column] for group in range(4))
        for odd in (0, 1):
            ab, cd = _take_lanes(builder, a, b, odd), _take_lanes(builder, c, d, odd)
            out[column + 4 * odd] = _take_lanes(builder, ab, cd, 0)
            out[column + 4 * odd + 8] = _take_lanes(builder, ab, cd, 1)
    return out


def _row_addresses(builder: Any, base: Any, stride: Any, last: Any) -> list[Any]:
    """Addresses of 16 rows; those past the last one are the last one again."""
    addresses = []
    for i in range(16):
        index = ir.Constant(I64, i)
        inside = builder.icmp_signed("<=", index, last)
        addresses.append(
            builder.add(base, builder.mul(builder.select(inside, index, last), stride))
        )
    return addresses


def transpose_pieces(pieces: int, step: int) -> Any:
    """An operation (base, stride, (last, target)): 64 bytes of each of 16 rows, transposed.

    A row's 64 bytes are `pieces` equal runs, `step` bytes apart. At target: 16 vectors, vector j
    with dword j of every row.
    """
    lanes = 16 // pieces

    def emit(builder: Any, base: Any, stride: Any, rest: Any) -> None:
        last, target = (builder.extract_value(rest, i) for i in (0, 1))
        rows = []
        for address in _row_addresses(builder, base, stride, last):
            parts = [
                load_vector(builder, _at(builder, address, step * i), I32, lanes)
                for i in range(pieces)
            ]
            while len(parts) > 1:
                wide = constant(I32, list(range(2 * parts[0].type.count)))
                parts = [
                    builder.shuffle_vector(parts[i], parts[i + 1], wide)
                    for i in range(0, len(parts), 2)
                ]
            rows.append(parts[0])
        for j, column in enumerate(_transpose(builder, rows)):
            store_vector(builder, column, _at(builder, target, 64 * j))

    return operation(types.void, (ADDRESS, ADDRESS, types.UniTuple(ADDRESS, 2)), emit)


def _transpose_heads(builder: Any, base: Any, stride: Any, rest: Any) -> None:
    last, target = (builder.extract_value(rest, i) for i in (0, 1))
    addresses = _row_addresses(builder, base, stride, last)
    fours = []
    for i in range(4):  # rows i, i + 4, i + 8, i + 12: one in each 128 bits
        parts = [load_vector(builder, addresses[4 * lane + i], I32, 4) for lane in range(4)]
        halves = [
            builder.shuffle_vector(parts[k], parts[k + 1], constant(I32, list(range(8))))
            for k in (0, 2)
        ]
        fours.append(builder.shuffle_vector(*halves, constant(I32, list(range(16)))))
    pairs = [
        _interleave(builder, fours[k], fours[k + 1], 1, high) for k in (0, 2) for high in (0, 1)
    ]
    for j in range(4):
        column = _interleave(builder, pairs[j // 2], pairs[2 + j // 2], 2, j % 2)
        store_vector(builder, column, _at(builder, target, 64 * j))


# (base, stride, (last, target)): 16 bytes of each of 16 rows as 4 vectors, dword j of every row.
transpose_heads = operation(
    types.void, (ADDRESS, ADDRESS, types.UniTuple(ADDRESS, 2)), _transpose_heads
)


def _load_splat(builder: Any, address: Any, kind: Any, lanes: int = 16) -> Any:
    return splat(builder, builder.load(pointer(builder, address, kind), align=4), lanes)


class Tile:
    """What the product of a tile depends on at compile time."""

    def __init__(self, tokens: int, sub: int, minima: bool, narrow: bool) -> None:
        self.tokens, self.sub, self.minima, self.narrow = tokens, sub, minima, narrow


# Offsets in a panel (16 rows x 256 values) and in a packed activation; see tiles.py.
PANEL_SCALES, PANEL_MINIMA, PANEL_BYTES = 4096, 5120, 6144
ACT_SUMS, ACT_SCALES, ACT_BYTES = 256, 320, 384


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", a.type, a, b, c)


def _sub_block(
    builder: Any, tile: Tile, s: Any, panels: list[Any], act: Any, inner: list[Any]
) -> None:
    """inner[t][n] += scale * (dot of sub-block s) [- minimum * sum] for all tokens, both panels."""
    quads, cells = tile.sub // 4, [(t, n) for t in range(tile.tokens) for n in (0, 1)]
    by_sub = [builder.add(p, builder.mul(s, ir.Constant(I64, quads * 64))) for p in panels]
    q = builder.add(act, builder.mul(s, ir.Constant(I64, tile.sub)))
    four = builder.mul(s, ir.Constant(I64, 4))
    sums = builder.add(_at(builder, act, ACT_SUMS), four)
    dots: dict[tuple[int, int], Any] = {}
    for t, n in cells:
        start = _at(builder, sums, t * ACT_BYTES)
        zero = constant(I32, [0] * 16)
        dots[t, n] = zero if tile.minima else _load_splat(builder, start, I32)
    for k in range(quads):
        weights = [load_vector(builder, _at(builder, p, 64 * k), I32, 16) for p in by_sub]
        for t in range(tile.tokens):
            value = _load_splat(builder, _at(builder, q, t * ACT_BYTES + 4 * k), I32)
            for n in (0, 1):
                dots[t, n] = dot_bytes(builder, dots[t, n], weights[n], value)
    line = builder.mul(s, ir.Constant(I64, 64))
    scales, minima = (
        [load_vector(builder, builder.add(_at(builder, p, offset), line), F32, 16) for p in panels]
        for offset in (PANEL_SCALES, PANEL_MINIMA)
    )
    for t, n in cells:
        total = builder.load(inner[2 * t + n])
        value = builder.sitofp(dots[t, n], vector(F32, 16))
        if tile.narrow:
            scale = builder.add(_at(builder, act, ACT_SCALES + t * ACT_BYTES), four)
            value = builder.fmul(value, _load_splat(builder, scale, F32))
        total = _fma(builder, value, scales[n], total)
        if tile.minima:
            act_sum = _load_splat(builder, _at(builder, sums, t * ACT_BYTES), F32)
            total = _fma(builder, minima[n], act_sum, total)
        builder.store(total, inner[2 * t + n])


def tile_product(tokens: int, sub: int, minima: bool, narrow: bool) -> Any:
    """An operation (panels, act, (sums, stride)): `tokens` x 32 rows x 256 values.

    Adds to the float32 sums at `sums` (32 per token, `stride` bytes between tokens).
    """
    tile = Tile(tokens, sub, minima, narrow)

    def emit(builder: Any, first: Any, act: Any, rest: Any) -> None:
        sums, stride = (builder.extract_value(rest, i) for i in range(2))
        panels = [first, _at(builder, first, PANEL_BYTES)]
        zero = ir.Constant(vector(F32, 16), [0.0] * 16)
        inner = [cgutils.alloca_once_value(builder, zero) for _ in range(2 * tokens)]
        for place in inner:
            builder.store(zero, place)
        with cgutils.for_range(builder, ir.Constant(I64, 256 // sub)) as loop:
            _sub_block(builder, tile, loop.index, panels, act, inner)
        for t in range(tokens):
            row = builder.add(sums, builder.mul(stride, ir.Constant(I64, t)))
            scale = _load_splat(builder, _at(builder, act, ACT_SCALES + t * ACT_BYTES), F32)
            for n in (0, 1):
                place = _at(builder, row, 64 * n)
                part = builder.load(inner[2 * t + n])
                total = load_vector(builder, place, F32, 16)
                total = builder.fadd(total, part) if narrow else _fma(builder, part, scale, total)
                store_vector(builder, total, place)

    return operation(types.void, (ADDRESS, ADDRESS, types.UniTuple(ADDRESS, 2)), emit)
