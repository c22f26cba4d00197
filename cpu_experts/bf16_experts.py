"""Many tokens through their experts on AMX: the blocks of bf16_products.py, expert after expert.

Tokens are gathered by expert, each expert's in tiles of its own. That is done for some
experts at a time, so that the tiles of their tokens stay near and few: gather, then h, then the
output, where an item is a run of rows that all of these experts add to (prefill.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from cpu_experts import amx
from cpu_experts.amx import GROUP, SUPER_BYTES, TILE_BYTES, TILE_COLS
from cpu_experts.bank import ExpertBank
from cpu_experts.bf16_products import (
    MOST_ROWS,
    PASS,
    SUMS,
    filling,
    hidden_run,
    multiply,
    no_token,
    pack_row,
    registers,
    step_of,
)
from cpu_experts.cache import c_function
from cpu_experts.formats import FLOAT
from cpu_experts.memory import load_i64
from cpu_experts.moe_job import (
    DOWN,
    GATE,
    GROUP_BYTES,
    GROUPS,
    N_GROUPS,
    OUT,
    PAIRS,
    SLOTS,
    TOKENS,
    UP,
    WEIGHTS,
    H,
    clear_rows,
)
from cpu_experts.pool import ITEM
from cpu_experts.prefill import add_parts
from cpu_experts.program import Program
from cpu_experts.tensor import COLS, N_ROWS
from cpu_experts.workspace import WORKSPACE

LEAST_TOKENS = 96  # that an expert meets on average; fewer meet the weights as int8 no slower
_WAVE = 4096  # gathered tokens at a time: 75 MB of tiles in R1
# Fields of a job beside moe_job's. A group's first pair is its first gathered token.
_CONFIG, _FILL, _UP_FILL, _DOWN_FILL, _X, _ACTS, _STEP, _DOWN_STEP, _CLEAR = range(22, 31)
_FIELDS = 31


def _gather_item(job, item, slot, scratch):
    """16 gathered tokens as tiles; those without a pair are 0."""
    cols = load_i64(load_i64(job + 8 * GATE) + 8 * COLS)
    target = load_i64(job + 8 * _ACTS) + item * cols // TILE_COLS * TILE_BYTES
    for t in range(GROUP):
        pair = load_i64(load_i64(job + 8 * PAIRS) + 8 * (item * GROUP + t))
        if pair >= 0:
            token = pair // load_i64(job + 8 * SLOTS)
            pack_row(load_i64(job + 8 * _X) + 4 * token * cols, cols, target + 64 * t)
        else:
            no_token(cols, target + 64 * t)


def _hidden_item(job, item, slot, scratch):
    """h of one expert's tokens for one run of rows of gate and up."""
    gate, step = load_i64(job + 8 * GATE), load_i64(job + 8 * _STEP)
    inter, supers = load_i64(gate + 8 * N_ROWS), load_i64(gate + 8 * COLS) // 256
    runs = (inter + step - 1) // step
    group, row = load_i64(job + 8 * GROUPS) + item // runs * GROUP_BYTES, item % runs * step
    tile, tokens = load_i64(group + 8) // GROUP, load_i64(group + 16)
    hidden_run(
        load_i64(job + 8 * _CONFIG), gate, load_i64(job + 8 * _FILL),
        load_i64(job + 8 * UP), load_i64(job + 8 * _UP_FILL), load_i64(group), row,
        min(step, inter - row), load_i64(job + 8 * _ACTS) + tile * supers * SUPER_BYTES,
        (tokens + GROUP - 1) // GROUP * GROUP,
        load_i64(job + 8 * H) + tile * inter // TILE_COLS * TILE_BYTES, scratch,
    )  # fmt: skip


def _output_item(job, item, slot, scratch):
    """One run of rows of the output: what these experts add to it."""
    down, step = load_i64(job + 8 * DOWN), load_i64(job + 8 * _DOWN_STEP)
    none = item - item  # a literal 0 would compile `multiply` once more
    hidden, inter = load_i64(down + 8 * N_ROWS), load_i64(down + 8 * COLS)
    row = item * step
    n_rows, out = min(step, hidden - row), load_i64(job + 8 * OUT) + 4 * row
    if load_i64(job + 8 * _CLEAR) != 0:
        clear_rows(out, load_i64(job + 8 * TOKENS), 4 * hidden, n_rows)
    for g in range(load_i64(job + 8 * N_GROUPS)):
        group = load_i64(job + 8 * GROUPS) + g * GROUP_BYTES
        expert, first, tokens = load_i64(group), load_i64(group + 8), load_i64(group + 16)
        for start in range(0, tokens, PASS):
            n = min(PASS, tokens - start)
            h = (first + start) // GROUP * (inter // TILE_COLS) * TILE_BYTES
            multiply(
                load_i64(job + 8 * _CONFIG), down, load_i64(job + 8 * _DOWN_FILL), none, none,
                expert, row, n_rows, load_i64(job + 8 * H) + h, (n + GROUP - 1) // GROUP * GROUP,
                scratch,
            )  # fmt: skip
            add_parts(job, first + start, n, scratch + SUMS, out, n_rows, hidden)


@cache
def compiled() -> tuple[int, int, int]:
    """The codes of the three kinds of items, compiled or loaded once."""
    gather, hidden, output = (
        c_function(item, ITEM) for item in (_gather_item, _hidden_item, _output_item)
    )
    return gather, hidden, output


def suits(n_pairs: int, bank: ExpertBank) -> bool:
    """Whether so many tokens of experts go through `bank` here. `forward` asks for that first."""
    return (
        n_pairs >= LEAST_TOKENS * bank.n_experts
        and amx.in_use()
        and bank.hidden % 256 == 0
        and bank.inter % 256 == 0
        and all(w.format.activation != FLOAT for w in (bank.gate, bank.up, bank.down))
    )


def forward(
    x: np.ndarray, ids: np.ndarray, weights: np.ndarray, bank: ExpertBank, out: np.ndarray
) -> None:
    """Write moe_forward's answer to `out`. All arrays are as its compiled code takes them, and ids
    are the bank's.
    """
    waves, program = list(_waves(ids.ravel(), bank.n_experts)), Program()
    if not waves:
        out.fill(0)
    most = max((len(pairs) for _, pairs in waves), default=0)
    acts = WORKSPACE.at_least(2 * most * (bank.hidden + bank.inter))
    step, down_step = step_of(bank.inter, MOST_ROWS // 2), step_of(bank.hidden, MOST_ROWS)
    gather, hidden, output = compiled()
    for groups, pairs in waves:
        fields = {
            GATE: bank.gate.address,
            UP: bank.up.address,
            DOWN: bank.down.address,
            GROUPS: program.array(groups),
            N_GROUPS: len(groups),
            PAIRS: program.array(pairs),
            H: acts + 2 * most * bank.hidden,
            OUT: int(out.ctypes.data),
            TOKENS: len(x),
            WEIGHTS: int(weights.ctypes.data),
            SLOTS: ids.shape[1],
            _CONFIG: registers(),
            _FILL: filling(bank.gate.format.name),
            _UP_FILL: filling(bank.up.format.name),
            _DOWN_FILL: filling(bank.down.format.name),
            _X: int(x.ctypes.data),
            _ACTS: acts,
            _STEP: step,
            _DOWN_STEP: down_step,
            _CLEAR: groups is waves[0][0],
        }
        job = program.words([fields.get(field, 0) for field in range(_FIELDS)])
        program.add(gather, job, program.words([len(pairs) // GROUP]))
        program.add(hidden, job, program.words([len(groups) * -(-bank.inter // step)]))
        program.add(output, job, program.words([-(-bank.hidden // down_step)]))
    program.run()


def _waves(ids: np.ndarray, n_experts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups int64 [n, 3] of some experts (expert, first gathered token, tokens), and the pair of
    each gathered token, int64: -1 for those that fill its tiles.
    """
    chosen = np.flatnonzero(ids >= 0)
    order = chosen[np.argsort(ids[chosen], kind="stable")]
    ends = np.cumsum(np.bincount(ids[chosen], minlength=n_experts))
    groups: list[tuple[int, int, int]] = []
    gathered, first = np.full(_WAVE, -1), 0
    for expert, own in enumerate(np.split(order, ends[:-1])):
        for start in range(0, len(own), _WAVE):
            part = own[start : start + _WAVE]
            whole = -(-len(part) // GROUP) * GROUP
            if first + whole > _WAVE:
                yield np.array(groups), gathered[:first]
                groups, gathered, first = [], np.full(_WAVE, -1), 0
            gathered[first : first + len(part)] = part
            groups.append((expert, first, len(part)))
            first += whole
    if groups:
        yield np.array(groups), gathered[:first]


STEPS: dict[str, Callable[[], object]] = {"bf16 experts": compiled}
