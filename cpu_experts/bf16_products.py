"""Products of many tokens with quantised weights on AMX: both as bf16, sums in float32.

An item is a run of rows. Of some superblocks of its columns, the weights become tiles
(bf16_panels.py) that stay in the second cache, and meet all tokens, 32 rows x 32 tokens at a time.
The tokens' own tiles are made once for all products of an input. Rounding to bf16 costs a third of
what one int8 term costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module

import numpy as np

from cpu_experts import amx
from cpu_experts.activate import swiglu
from cpu_experts.amx import GROUP, SUPER_BYTES, TILE_BYTES, TILE_COLS, to_bf16
from cpu_experts.bank import ExpertBank
from cpu_experts.cache import c_function, inner
from cpu_experts.formats import FLOAT, FORMATS
from cpu_experts.memory import call_item, load_i64, prefetch
from cpu_experts.pool import ITEM, get_threads, pool_address
from cpu_experts.program import runner
from cpu_experts.tensor import BASES, COLS, N_ROWS, STRIDE, QuantTensor
from cpu_experts.vectors import load_floats, store, store_floats, zero
from cpu_experts.workspace import WORKSPACE

LEAST_TOKENS = 48  # fewer meet the weights as int8 no slower
_BLOCK = 32  # tokens and rows of a block: two tiles
MOST_ROWS = 256  # of an item
_NEAR = 1  # superblocks of columns at a time: 32 tokens of one stay in the first cache
PASS = 512  # tokens whose sums of 256 rows lie in scratch
SUMS = 1 << 19  # in a worker's scratch, behind tiles of weights

# Registers 0-3 hold sums of 16 tokens x 16 rows, 4 and 5 tokens, 6 and 7 rows.
_clear0, _clear1, _clear2, _clear3 = (amx.tile_clear(i) for i in range(4))
_load0, _load1, _load2, _load3 = (amx.tile_load(i) for i in range(4))
_load4, _load5, _load6, _load7 = (amx.tile_load(i) for i in range(4, 8))
_store0, _store1, _store2, _store3 = (amx.tile_store(i) for i in range(4))
_dot0, _dot1, _dot2, _dot3 = (
    amx.tile_dot(2 * t + r, 4 + t, 6 + r) for t in range(2) for r in range(2)
)


@inner
def _block(acts, act_step, panels, panel_step, n_tiles, out, out_stride, more, both, ahead, part):
    """32 tokens x 32 rows over n_tiles tiles of columns; with `more`, added to what is there.
    Without `both` there are 16 tokens.

    Meanwhile an eighth of the tokens' tiles at `ahead` is asked for, `part` of 8.
    """
    below, right = out + 16 * out_stride, out + 64
    if more:
        _load0(out, out_stride)
        _load1(right, out_stride)
        if both:
            _load2(below, out_stride)
            _load3(below + 64, out_stride)
    else:
        _clear0()
        _clear1()
        _clear2()
        _clear3()
    ahead += part // 4 * act_step + part % 4 * 256
    for at in range(0, n_tiles * TILE_BYTES, TILE_BYTES):
        _load4(acts + at, 64)
        _load6(panels + at, 64)
        _load7(panels + panel_step + at, 64)
        if both:
            _load5(acts + act_step + at, 64)
        for line in range(0, 256, 64):
            amx.prefetch_far(ahead + at + line)
        _dot0()
        _dot1()
        if both:
            _dot2()
            _dot3()
    _store0(out, out_stride)
    _store1(right, out_stride)
    if both:
        _store2(below, out_stride)
        _store3(below + 64, out_stride)


@inner
def _fill_rows(weight, fill, matrix, row, n_rows, first, n, target):
    """Superblocks first..first + n of a run of rows as tiles, the next rows asked for meanwhile."""
    stride, supers = load_i64(weight + 8 * STRIDE), load_i64(weight + 8 * COLS) // 256
    n_bytes = stride // supers
    start = load_i64(load_i64(weight + 8 * BASES) + 8 * matrix) + row * stride + first * n_bytes
    for r in range(0, n_rows, GROUP):
        for ahead in range(r + GROUP, min(r + 2 * GROUP, n_rows)):
            for line in range(0, n * n_bytes, 64):
                prefetch(start + ahead * stride + line)
        call_item(fill, (start + r * stride, stride, n, target))
        target += n * SUPER_BYTES


@inner
def multiply(
    config, weight, fill, other, other_fill, matrix, row, n_rows, acts, n_tokens, scratch
):  # fmt: skip
    """Products of a run of rows of a stack's matrix, or with `other` of a run of two: float32
    [n_tokens, all rows] at `SUMS` in scratch, of at most `PASS` tokens with 256 rows. The tokens
    are whole groups.
    """
    supers, panels, out = load_i64(weight + 8 * COLS) // 256, scratch, scratch + SUMS
    amx.configure(config)
    wide = 2 * n_rows if other != 0 else n_rows
    for first in range(0, supers, _NEAR):
        n = min(_NEAR, supers - first)
        size = n * SUPER_BYTES
        _fill_rows(weight, fill, matrix, row, n_rows, first, n, panels)
        if other != 0:
            target = panels + n_rows // GROUP * size
            _fill_rows(other, other_fill, matrix, row, n_rows, first, n, target)
        for t in range(0, n_tokens, _BLOCK):
            here = acts + (t // GROUP * supers + first) * SUPER_BYTES
            for r in range(0, wide, _BLOCK):
                _block(
                    here,
                    supers * SUPER_BYTES,
                    panels + r // GROUP * size,
                    size,
                    8 * n,
                    out + 4 * (t * wide + r),
                    4 * wide,
                    first > 0,
                    n_tokens - t > GROUP,
                    here + 2 * supers * SUPER_BYTES,
                    r // _BLOCK,
                )
    amx.release()


# Fields of a job.
_CONFIG, _WEIGHT, _FILL, _ACTS, _N_TOKENS, _STEP, _OUT, _UP, _UP_FILL = range(9)
_GROUPS = _N_TOKENS  # where experts have tokens of their own: (expert, first token, tokens) of each
_GROUP_BYTES = 24


def _product_item(job, item, slot, scratch):
    """A run of rows of one matrix against all tokens."""
    weight, step = load_i64(job + 8 * _WEIGHT), load_i64(job + 8 * _STEP)
    rows, supers = load_i64(weight + 8 * N_ROWS), load_i64(weight + 8 * COLS) // 256
    row, n_tokens = item * step, load_i64(job + 8 * _N_TOKENS)
    n_rows, fill = min(step, rows - row), load_i64(job + 8 * _FILL)
    up, up_fill = load_i64(job + 8 * _UP), load_i64(job + 8 * _UP_FILL)  # 0, as variables
    for first in range(0, n_tokens, PASS):
        n = min(PASS, n_tokens - first)
        acts = load_i64(job + 8 * _ACTS) + first // GROUP * supers * SUPER_BYTES
        multiply(
            load_i64(job + 8 * _CONFIG), weight, fill, up, up_fill, 0, row, n_rows, acts, n, scratch
        )  # fmt: skip
        for t in range(n):
            source = scratch + SUMS + 4 * t * n_rows
            target = load_i64(job + 8 * _OUT) + 4 * ((first + t) * rows + row)
            for i in range(0, 4 * n_rows, 64):
                store_floats(load_floats(source + i), target + i)


@inner
def _pack_row(source, n_cols, target):
    """A token's values as its row of tiles: whole tiles."""
    for tile in range(n_cols // TILE_COLS):
        at = source + 4 * TILE_COLS * tile
        store(to_bf16(load_floats(at), load_floats(at + 64)), target + TILE_BYTES * tile)


def _hidden_item(job, item, slot, scratch):
    """h of one expert's tokens for a run of rows of gate and up, as tiles."""
    gate, up = load_i64(job + 8 * _WEIGHT), load_i64(job + 8 * _UP)
    fill, up_fill = load_i64(job + 8 * _FILL), load_i64(job + 8 * _UP_FILL)
    inter, supers = load_i64(gate + 8 * N_ROWS), load_i64(gate + 8 * COLS) // 256
    step = load_i64(job + 8 * _STEP)
    runs = (inter + step - 1) // step
    group, row = load_i64(job + 8 * _GROUPS) + item // runs * _GROUP_BYTES, item % runs * step
    expert, tile = load_i64(group), load_i64(group + 8) // GROUP
    n_tokens = (load_i64(group + 16) + GROUP - 1) // GROUP * GROUP
    n_rows, config = min(step, inter - row), load_i64(job + 8 * _CONFIG)
    for first in range(0, n_tokens, PASS):
        n, here = min(PASS, n_tokens - first), tile + first // GROUP
        acts = load_i64(job + 8 * _ACTS) + here * supers * SUPER_BYTES
        multiply(config, gate, fill, up, up_fill, expert, row, n_rows, acts, n, scratch)
        for t in range(n):
            gates = scratch + SUMS + 8 * t * n_rows
            swiglu(gates, gates + 4 * n_rows, n_rows)
            target = (here + t // GROUP) * (inter // TILE_COLS) + row // TILE_COLS
            target = load_i64(job + 8 * _OUT) + target * TILE_BYTES + 64 * (t % GROUP)
            _pack_row(gates, n_rows, target)


def _gather_item(job, item, slot, scratch):
    """16 rows of an input as tiles, those of their pairs; without a pair 0. Job: x, cols, slots,
    pairs, target.
    """
    x, cols, slots = load_i64(job), load_i64(job + 8), load_i64(job + 16)
    target = load_i64(job + 32) + item * cols // TILE_COLS * TILE_BYTES
    for t in range(GROUP):
        pair = load_i64(load_i64(job + 24) + 8 * (item * GROUP + t))
        if pair >= 0:
            _pack_row(x + 4 * (pair // slots) * cols, cols, target + 64 * t)
        else:
            for tile in range(cols // TILE_COLS):
                store(zero(), target + TILE_BYTES * tile + 64 * t)


@cache
def compiled() -> tuple[int, int, int]:
    """The codes of the three kinds of items: a product's, h's, an input's."""
    product_code, hidden_code, gather_code = (
        c_function(item, ITEM) for item in (_product_item, _hidden_item, _gather_item)
    )
    return product_code, hidden_code, gather_code


def _start(code: int, fields: list[int], items: int) -> None:
    """Run a job as a program (program.py) of one step."""
    words = np.array([*fields, items], dtype=np.int64)
    job = int(words.ctypes.data)
    step = np.array([code, job, job + 8 * len(fields)], dtype=np.int64)
    runner()(int(step.ctypes.data), 1, pool_address(), WORKSPACE.scratch)


class Tiles:
    """float32 [T, cols] as bf16 tiles, for products that read it; cols whole superblocks."""

    def __init__(self, n_tokens: int, cols: int) -> None:
        self.n_tokens, self.cols = n_tokens, cols
        self.whole = -(-n_tokens // GROUP) * GROUP
        self._memory = np.empty(2 * self.whole * cols + 64, dtype=np.uint8)
        self.address = (int(self._memory.ctypes.data) + 63) // 64 * 64

    @classmethod
    def of(cls, x: np.ndarray) -> Tiles:
        """From C-contiguous float32 [T, cols]."""
        tiles = cls(*x.shape)
        rows = np.full(tiles.whole, -1)
        rows[: len(x)] = np.arange(len(x))
        fields = [int(x.ctypes.data), tiles.cols, 1, int(rows.ctypes.data), tiles.address]
        _start(compiled()[2], fields, tiles.whole // GROUP)
        return tiles


def suits(n_tokens: int, *weights: QuantTensor) -> bool:
    """Whether products of these matrices with so many tokens are made here.

    Everything else below asks for that first.
    """
    return (
        n_tokens >= LEAST_TOKENS
        and amx.in_use()
        and all(
            w.count == 1 and w.cols % 256 == 0 and w.rows % 32 == 0 and w.format.activation != FLOAT
            for w in weights
        )
    )


def step_of(rows: int, most: int) -> int:
    """Rows of an item: some items for each thread, whole blocks."""
    return min(most, max(32, rows // (2 * get_threads()) // 32 * 32))


def product(x: Tiles, w: QuantTensor) -> np.ndarray:
    """x times a matrix (rows, cols), transposed: float32 [T, rows]."""
    out = np.empty((x.whole, w.rows), dtype=np.float32)
    step = step_of(w.rows, MOST_ROWS)
    where = (x.address, x.whole, step, int(out.ctypes.data))
    fields = [registers(), w.address, filling(w.format.name), *where, 0, 0]
    _start(compiled()[0], fields, -(-w.rows // step))
    return out[: x.n_tokens]


def hidden(
    bank: ExpertBank, acts: int, groups: int, n_groups: int, h: int
) -> tuple[list[int], int]:
    """The job, and the number of its items, that makes tiles of h at `h` of those at `acts`.

    At `groups` lie int64 [n_groups, 3]: (expert, first token, tokens).
    """
    step, (gate, up) = step_of(bank.inter, MOST_ROWS // 2), (bank.gate, bank.up)
    codes = [filling(weight.format.name) for weight in (gate, up)]
    fields = [registers(), gate.address, codes[0], acts, groups, step, h, up.address, codes[1]]
    return fields, n_groups * -(-bank.inter // step)


def feed_forward(x: Tiles, bank: ExpertBank) -> np.ndarray:
    """A dense SwiGLU layer, the bank's only expert: float32 [T, hidden]."""
    h, group = Tiles(x.n_tokens, bank.inter), np.array([0, 0, x.n_tokens])
    _start(compiled()[1], *hidden(bank, x.address, int(group.ctypes.data), 1, h.address))
    return product(h, bank.down)


@cache
def filling(name: str) -> int:
    """The address of the function that makes tiles of a format, compiled or loaded once."""
    return int(import_module("cpu_experts.bf16_panels").filling(name))


STEPS: dict[str, Callable[[], object]] = {
    "bf16": compiled,
    **{
        f"bf16 {name}": partial(filling, name)
        for name, row in FORMATS.items()
        if row.activation != FLOAT
    },
}


def steps(names: Iterable[str]) -> list[str]:
    """Of STEPS, what prompts of a model with these formats need: see warmup.py."""
    wanted = ["bf16", *(f"bf16 {name}" for name in names)] if amx.in_use() else []
    return [step for step in wanted if step in STEPS]


def registers() -> int:
    """The address of what says that all tile registers are whole."""
    return int(amx.WHOLE_TILES.ctypes.data)
