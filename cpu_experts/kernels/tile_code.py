"""LLVM code of the tiles: the transposition of 16 rows, and the product of a tile.

Written as loops in Python that emit instructions, because 16 accumulators must stay in registers.
tiles.py says what the memory looks like.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from cpu_experts.memory import I32, I64, pointer
from cpu_experts.simd import (
    F32,
    INTS,
    call,
    constant,
    dot_bytes,
    load_vector,
    operation,
    prefetch_line,
    splat,
    store_vector,
    vector,
)

binding.initialize_native_asmparser()  # for _by_words
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


# Tokens of a tile: 12 dot products and their 12 sums over a superblock are as many as registers
# hold beside weights. The rest of an even number of tokens is met 4 at a time.
BIG, SMALL = 6, 4


@dataclass(frozen=True)
class Tile:
    """What the product of a tile depends on at compile time.

    words: scales are integers, and products of a sub-block fit int16: VPDPWSSD applies them.
    minima: there are minima, and sums of activations for them; without, the dot products start
    from the sums. narrow: activations have a scale per 32 values, and minima are float32.
    centred: weights with minima meet activations less their middle, which takes 32 products into
    int16; minima are float32, and give the middle back.
    """

    tokens: int
    sub: int
    words: bool = False
    minima: bool = False
    narrow: bool = False
    centred: bool = False

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(token, panel) of each register of sums."""
        return [(t, n) for t in range(self.tokens) for n in (0, 1)]

    @property
    def subs(self) -> int:
        """Sub-blocks at once: fewer than 10 chains of dot products would wait for each other."""
        return 1 if self.tokens == BIG else 2

    @property
    def starts(self) -> bool:
        """Whether dot products start from sums of activations, not from 0."""
        return self.centred or not self.minima

    @property
    def values(self) -> int:
        """Values of a step of the loop: a whole number of `subs` sub-blocks."""
        return max(32, self.sub * self.subs)


@dataclass(frozen=True)
class Places:
    """Addresses of a tile: its two panels, each token's 256 values, sums and scales, results."""

    panels: list[Any]
    acts: list[Any]
    packed: Any
    sums: Any


# Offsets in a panel (16 rows x 256 values) and in what is packed of an activation; see tiles.py.
PANEL_SCALES, PANEL_MINIMA, PANEL_FACTORS, PANEL_BYTES = 4096, 5120, 6144, 6272
PACKED_FLOATS, PACKED_SCALES, PACKED_BYTES = 32, 64, 128
SUMS_BYTES = 128  # a token's sums of 32 rows


def _by_words(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """VPDPWSSD, as it is: LLVM would make VPMADDWD and VPADDD of it, to wait less in a chain.

    Here many chains wait for the ports.
    """
    kind = ir.FunctionType(total.type, [total.type] * 3)
    code = ir.InlineAsm(kind, "vpdpwssd $3, $2, $0", "=v,0,v,v")
    return builder.call(code, [total, a, b])


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", a.type, a, b, c)


def _dots(builder: Any, tile: Tile, step: Any, subs: list[int], places: Places) -> dict[Any, Any]:
    """Integer products of some sub-blocks of a step: (token, panel, sub-block) -> 16 rows."""
    values = builder.mul(step, ir.Constant(I64, tile.values))
    lines = builder.mul(values, ir.Constant(I64, 16))
    panels = [builder.add(p, lines) for p in places.panels]
    acts = [builder.add(act, values) for act in places.acts]
    fours = builder.mul(step, ir.Constant(I64, 4 * tile.values // tile.sub))
    starts = builder.add(places.packed, fours)
    dots: dict[Any, Any] = {}
    for i in subs:
        for t, n in tile.cells:
            start = _at(builder, starts, t * PACKED_BYTES + 4 * i)
            dots[t, n, i] = _load_splat(builder, start, I32) if tile.starts else _ZERO
    for k in range(tile.sub // 4):
        for i in subs:
            quad = i * tile.sub // 4 + k
            weights = [load_vector(builder, _at(builder, p, 64 * quad), I32, 16) for p in panels]
            for t in range(tile.tokens):
                value = _load_splat(builder, _at(builder, acts[t], 4 * quad), I32)
                for n in (0, 1):
                    dots[t, n, i] = dot_bytes(builder, dots[t, n, i], weights[n], value)
    return dots


def _add_subs(
    builder: Any, tile: Tile, step: Any, subs: list[int], places: Places, totals: dict[Any, Any]
) -> None:
    """totals[t, n] += scale * dot [- minimum * sum] of some sub-blocks of a step, for all cells."""
    dots = _dots(builder, tile, step, subs, places)
    count = tile.values // tile.sub
    lines, fours = (builder.mul(step, ir.Constant(I64, size * count)) for size in (64, 4))
    panels = [builder.add(p, lines) for p in places.panels]
    packed = builder.add(places.packed, fours)
    lane = I32 if tile.words else F32
    for i in subs:
        scales, minima = (
            [load_vector(builder, _at(builder, p, offset + 64 * i), lane, 16) for p in panels]
            for offset in (PANEL_SCALES, PANEL_MINIMA)
        )
        for t, n in tile.cells:
            total = builder.load(totals[t, n])
            here = _at(builder, packed, t * PACKED_BYTES + 4 * i)
            if tile.words:
                total = _by_words(builder, dots[t, n, i], scales[n], total)
            else:
                value = builder.sitofp(dots[t, n, i], vector(F32, 16))
                if tile.narrow:
                    scale = _load_splat(builder, _at(builder, here, PACKED_SCALES), F32)
                    value = builder.fmul(value, scale)
                total = _fma(builder, value, scales[n], total)
                if tile.minima and tile.narrow:
                    total = _fma(builder, minima[n], _load_splat(builder, here, F32), total)
            builder.store(total, totals[t, n])


def _minima(builder: Any, tile: Tile, places: Places) -> dict[Any, Any]:
    """Sums of minimum * sum over the superblock, both sides float32 or pairs of int16."""
    kind, sums_at = (F32, PACKED_FLOATS) if tile.centred else (I32, 0)
    add = _fma if tile.centred else _by_words
    sums: dict[Any, Any] = dict.fromkeys(tile.cells, ir.Constant(vector(kind, 16), [0] * 16))
    for k in range(8 if tile.centred else 128 // tile.sub):
        place = PANEL_MINIMA + 64 * k
        minima = [load_vector(builder, _at(builder, p, place), kind, 16) for p in places.panels]
        for t in range(tile.tokens):
            place = _at(builder, places.packed, t * PACKED_BYTES + sums_at + 4 * k)
            value = _load_splat(builder, place, kind)
            for n in (0, 1):
                sums[t, n] = add(builder, minima[n], value, sums[t, n])
    return sums


def _superblock(builder: Any, tile: Tile, places: Places, totals: dict[Any, Any]) -> dict[Any, Any]:
    """The superblock's float32 products, without the activation's scale unless it is narrow."""
    kind = vector(F32, 16)
    parts = {cell: builder.load(total) for cell, total in totals.items()}
    factors = [
        [load_vector(builder, _at(builder, p, place), F32, 16) for p in places.panels]
        for place in (PANEL_FACTORS, PANEL_FACTORS + 64)
    ]
    if tile.words:
        parts = {cell: builder.sitofp(part, kind) for cell, part in parts.items()}
    if tile.centred:
        sums = _minima(builder, tile, places)
        for t, n in tile.cells:
            parts[t, n] = _fma(builder, parts[t, n], factors[0][n], builder.fneg(sums[t, n]))
        return parts
    if tile.words:
        for t, n in tile.cells:
            parts[t, n] = builder.fmul(parts[t, n], factors[0][n])
    if tile.minima and not tile.narrow:
        sums = _minima(builder, tile, places)
        for t, n in tile.cells:
            value = builder.fneg(builder.sitofp(sums[t, n], kind))
            parts[t, n] = _fma(builder, value, factors[1][n], parts[t, n])
    return parts


def _prefetch_next(builder: Any, tile: Tile, step: Any, rows: Any, column: Any) -> None:
    """One activation's lines of the tile that comes next."""
    place = builder.add(rows, builder.shl(step, ir.Constant(I64, 3)))
    row = builder.load(pointer(builder, _at(builder, place, 8 * tile.tokens), I64))
    for line in range(0, 256, 64):
        prefetch_line(builder, _at(builder, builder.add(row, column), line))


def tile_product(tile: Tile) -> Any:
    """An operation (panels, rows, column, packed, sums): tokens x 32 rows x 256 values.

    `panels` is two panels, `rows` the addresses of activation rows, and `column` where in them the
    superblock begins; addresses and what is packed go on for the tokens of the next tile, which are
    fetched. Adds to the float32 sums at `sums`, 32 per token.
    """

    def emit(builder: Any, first: Any, rows: Any, column: Any, packed: Any, sums: Any) -> None:
        panels = [first, _at(builder, first, PANEL_BYTES)]
        acts = [
            builder.add(builder.load(pointer(builder, _at(builder, rows, 8 * t), I64)), column)
            for t in range(tile.tokens)
        ]
        places = Places(panels, acts, packed, sums)
        kind = vector(I32 if tile.words else F32, 16)
        totals = {cell: cgutils.alloca_once(builder, kind) for cell in tile.cells}
        for total in totals.values():
            builder.store(ir.Constant(kind, [0] * 16), total)
        with cgutils.for_range(builder, ir.Constant(I64, 256 // tile.values)) as loop:
            _prefetch_next(builder, tile, loop.index, rows, column)
            count = tile.values // tile.sub
            for i in range(0, count, tile.subs):
                subs = list(range(i, i + tile.subs))
                _add_subs(builder, tile, loop.index, subs, places, totals)
        parts = _superblock(builder, tile, places, totals)
        for t, n in tile.cells:
            part, place = parts[t, n], _at(builder, sums, SUMS_BYTES * t + 64 * n)
            total = load_vector(builder, place, F32, 16)
            if tile.narrow:
                total = builder.fadd(part, total)
            else:
                offset = PACKED_BYTES * t + PACKED_SCALES
                scale = _load_splat(builder, _at(builder, packed, offset), F32)
                total = _fma(builder, scale, part, total)
            store_vector(builder, total, place)

    name = "tile_" + "_".join(str(int(value)) for value in astuple(tile))
    return operation(types.void, (ADDRESS,) * 5, emit, name)


def tile_products(sub: int, **kind: bool) -> tuple[Any, Any]:
    """The products of BIG and of SMALL tokens."""
    return tile_product(Tile(BIG, sub, **kind)), tile_product(Tile(SMALL, sub, **kind))
