"""LLVM code of the tiles: the transposition of 16 rows, and the product of a tile.

Written as loops in Python that emit instructions, because 16 accumulators must stay in registers.
tiles.py says what the memory looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from cpu_experts.memory import I32, I64, pointer
from cpu_experts.simd import (
    F32,
    INTS,
    call,
    constant,
    dot_bytes,
    dot_words,
    load_vector,
    operation,
    prefetch_line,
    splat,
    store_vector,
    vector,
)

ADDRESS = types.int64
_ZERO = constant(I32, [0] * 16)


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


def _row_addresses(builder: Any, base: Any, stride: Any) -> list[Any]:
    """Addresses of 16 rows, as sums that x86's addressing does: four of them need an addition."""
    steps = [builder.mul(stride, ir.Constant(I64, i)) for i in range(4)]
    fours = [builder.add(base, builder.mul(stride, ir.Constant(I64, i))) for i in (0, 4, 8, 12)]
    return [builder.add(four, step) for four in fours for step in steps]


def _quads(builder: Any, base: Any, stride: Any) -> Any:
    addresses = _row_addresses(builder, base, stride)
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
    columns = [_interleave(builder, pairs[j // 2], pairs[2 + j // 2], 2, j % 2) for j in range(4)]
    return cgutils.pack_array(builder, columns)


# (base, stride): 16 bytes of each of 16 rows as 4 vectors, dword j of every row. The first
# half of a transposition is in the loads, which cost no shuffles.
quads = operation(types.UniTuple(INTS, 4), (ADDRESS, ADDRESS), _quads)


def _load_splat(builder: Any, address: Any, kind: Any, lanes: int = 16) -> Any:
    return splat(builder, builder.load(pointer(builder, address, kind), align=4), lanes)


@njit
def tile_tokens(sub):
    """Tokens of a tile. Scales per 16 values need registers for their sums more often."""
    return 8 if sub == 32 else 4


@dataclass(frozen=True)
class Tile:
    """What the product of a tile depends on at compile time.

    words: scales are integers, and products of a sub-block fit int16: VPDPWSSD applies them.
    minima: there are minima, and sums of activations for them; without, the dot products start
    from the sums. narrow: activations have a scale per 32 values, and minima are float32.
    """

    tokens: int
    sub: int
    words: bool = False
    minima: bool = False
    narrow: bool = False

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(token, panel) of each register of sums."""
        return [(t, n) for t in range(self.tokens) for n in (0, 1)]


# Offsets in a panel (16 rows x 256 values) and in a packed activation; see tiles.py.
PANEL_SCALES, PANEL_MINIMA, PANEL_FACTORS, PANEL_BYTES = 4096, 5120, 6144, 6272
ACT_SUMS, ACT_SCALES, ACT_BYTES = 256, 320, 384
SUMS_BYTES = 128  # a token's sums of 32 rows


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", a.type, a, b, c)


def _dots(builder: Any, tile: Tile, s: Any, panels: list[Any], act: Any) -> dict[Any, Any]:
    """Integer products of sub-block s for all cells."""
    quad_count = tile.sub // 4
    by_sub = [builder.add(p, builder.mul(s, ir.Constant(I64, quad_count * 64))) for p in panels]
    q = builder.add(act, builder.mul(s, ir.Constant(I64, tile.sub)))
    starts = builder.add(_at(builder, act, ACT_SUMS), builder.mul(s, ir.Constant(I64, 4)))
    dots: dict[Any, Any] = {}
    for t, n in tile.cells:
        start = _at(builder, starts, t * ACT_BYTES)
        dots[t, n] = _ZERO if tile.minima else _load_splat(builder, start, I32)
    for k in range(quad_count):
        weights = [load_vector(builder, _at(builder, p, 64 * k), I32, 16) for p in by_sub]
        for t in range(tile.tokens):
            value = _load_splat(builder, _at(builder, q, t * ACT_BYTES + 4 * k), I32)
            for n in (0, 1):
                dots[t, n] = dot_bytes(builder, dots[t, n], weights[n], value)
    return dots


def _sub_block(
    builder: Any, tile: Tile, s: Any, panels: list[Any], act: Any, inner: dict[Any, Any]
) -> None:
    """inner[t, n] += scale * dot of sub-block s [- minimum * sum], for all cells."""
    dots = _dots(builder, tile, s, panels, act)
    line, four = (builder.mul(s, ir.Constant(I64, size)) for size in (64, 4))
    lane = I32 if tile.words else F32
    scales, minima = (
        [load_vector(builder, builder.add(_at(builder, p, offset), line), lane, 16) for p in panels]
        for offset in (PANEL_SCALES, PANEL_MINIMA)
    )
    for t, n in tile.cells:
        total = builder.load(inner[t, n], align=64)
        if tile.words:
            total = dot_words(builder, total, dots[t, n], scales[n])
            builder.store(total, inner[t, n], align=64)
            continue
        value = builder.sitofp(dots[t, n], vector(F32, 16))
        if tile.narrow:
            place = builder.add(_at(builder, act, ACT_SCALES + t * ACT_BYTES), four)
            value = builder.fmul(value, _load_splat(builder, place, F32))
        total = _fma(builder, value, scales[n], total)
        if tile.minima and tile.narrow:
            place = builder.add(_at(builder, act, ACT_SUMS + t * ACT_BYTES), four)
            total = _fma(builder, minima[n], _load_splat(builder, place, F32), total)
        builder.store(total, inner[t, n], align=64)


def _minima(builder: Any, tile: Tile, panels: list[Any], act: Any) -> dict[Any, Any]:
    """Integer sums of minimum * sum over the superblock: pairs of int16 on both sides."""
    sums = dict.fromkeys(tile.cells, _ZERO)
    for k in range(128 // tile.sub):
        pairs = [
            load_vector(builder, _at(builder, p, PANEL_MINIMA + 64 * k), I32, 16) for p in panels
        ]
        for t in range(tile.tokens):
            place = _at(builder, act, t * ACT_BYTES + ACT_SUMS + 4 * k)
            value = _load_splat(builder, place, I32)
            for n in (0, 1):
                sums[t, n] = dot_words(builder, sums[t, n], pairs[n], value)
    return sums


def _sums_of_superblock(builder: Any, tile: Tile, panels: Any) -> dict[Any, Any]:
    """Where each cell's sum over a superblock lies.

    Up to 4 tokens they fit in registers beside the dot products. Those of 8 are in memory behind
    the panels, and a fence (no instruction) after each sub-block keeps them there: LLVM would take
    them for registers, and spill to a stack that is not aligned to a vector.
    """
    kind = vector(I32 if tile.words else F32, 16)
    if tile.tokens <= 4:
        return {cell: cgutils.alloca_once(builder, kind) for cell in tile.cells}
    first = 2 * PANEL_BYTES
    return {
        (t, n): pointer(builder, _at(builder, panels, first + 64 * (2 * t + n)), kind)
        for t, n in tile.cells
    }


def _superblock(
    builder: Any, tile: Tile, panels: list[Any], act: Any, inner: dict[Any, Any]
) -> dict[Any, Any]:
    """The superblock's float32 products, without the activation's scale unless it is narrow."""
    kind = vector(F32, 16)
    parts = {cell: builder.load(place, align=64) for cell, place in inner.items()}
    factors = [
        [load_vector(builder, _at(builder, p, PANEL_FACTORS + 64 * i), F32, 16) for p in panels]
        for i in (0, 1)
    ]
    if tile.words:
        for t, n in tile.cells:
            parts[t, n] = builder.fmul(builder.sitofp(parts[t, n], kind), factors[0][n])
    if tile.minima and not tile.narrow:
        sums = _minima(builder, tile, panels, act)
        for t, n in tile.cells:
            value = builder.fneg(builder.sitofp(sums[t, n], kind))
            parts[t, n] = _fma(builder, value, factors[1][n], parts[t, n])
    return parts


def _prefetch_next(builder: Any, tile: Tile, s: Any, here: Any, token_bytes: int) -> None:
    """Sub-block s's part of the lines behind the tile's, which the next tile reads."""
    all_bytes = tile.tokens * token_bytes
    part = all_bytes * tile.sub // 256
    start = builder.add(here, builder.mul(s, ir.Constant(I64, part)))
    for line in range(0, part, 64):
        prefetch_line(builder, _at(builder, start, all_bytes + line))


def tile_product(tile: Tile) -> Any:
    """An operation (panels, act, sums): tokens x 32 rows x 256 values.

    `panels` is two panels, then room for a vector per token and panel. Adds to the float32 sums at
    `sums`, 32 per token.
    """

    def emit(builder: Any, first: Any, act: Any, sums: Any) -> None:
        panels = [first, _at(builder, first, PANEL_BYTES)]
        zero = _ZERO if tile.words else ir.Constant(vector(F32, 16), [0.0] * 16)
        inner = _sums_of_superblock(builder, tile, first)
        for place in inner.values():
            builder.store(zero, place, align=64)
        with cgutils.for_range(builder, ir.Constant(I64, 256 // tile.sub)) as loop:
            _prefetch_next(builder, tile, loop.index, act, ACT_BYTES)
            _prefetch_next(builder, tile, loop.index, sums, SUMS_BYTES)
            _sub_block(builder, tile, loop.index, panels, act, inner)
            builder.fence("seq_cst", "singlethread")
        parts = _superblock(builder, tile, panels, act, inner)
        for t, n in tile.cells:
            scale = _load_splat(builder, _at(builder, act, ACT_SCALES + t * ACT_BYTES), F32)
            place, part = _at(builder, sums, SUMS_BYTES * t + 64 * n), parts[t, n]
            total = load_vector(builder, place, F32, 16)
            whole = builder.fadd if tile.narrow else partial(_fma, builder, scale)
            store_vector(builder, whole(part, total), place)

    return operation(types.void, (ADDRESS, ADDRESS, ADDRESS), emit)


def tile_products(sub: int, **kind: bool) -> tuple[Any, Any]:
    """The products of `tile_tokens(sub)` tokens, and of half as many."""
    tokens = tile_tokens.py_func(sub)
    return tile_product(Tile(tokens, sub, **kind)), tile_product(Tile(tokens // 2, sub, **kind))
