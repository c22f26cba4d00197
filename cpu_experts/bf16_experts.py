"""Many tokens through their experts on AMX: the blocks of bf16_products.py, expert after expert.

Tokens are gathered by expert, each expert's in tiles of its own. That is done for some
experts at a time, so that the tiles of their tokens stay near and few: gather, then h, then the
output, where an item is a run of rows that all of these experts add to (prefill.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from cpu_experts import amx, bf16_products
from cpu_experts.amx import GROUP, TILE_BYTES, TILE_COLS
from cpu_experts.bank import ExpertBank
from cpu_experts.bf16_products import MOST_ROWS, PASS, SUMS, filling, multiply, registers, step_of
from cpu_experts.cache import c_function
from cpu_experts.formats import FLOAT
from cpu_experts.memory import load_i64
from cpu_experts.moe_job import (
    DOWN,
    GROUP_BYTES,
    GROUPS,
    N_GROUPS,
    OUT,
    PAIRS,
    SLOTS,
    TOKENS,
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
_CONFIG, _FILL, _STEP, _CLEAR = range(22, 26)


def _output_item(job, item, slot, scratch):
    """One run of rows of the output: what these experts add to it."""
    down, step = load_i64(job + 8 * DOWN), load_i64(job + 8 * _STEP)
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
                load_i64(job + 8 * _CONFIG), down, load_i64(job + 8 * _FILL), none, none,
                expert, row, n_rows, load_i64(job + 8 * H) + h, (n + GROUP - 1) // GROUP * GROUP,
                scratch,
            )  # fmt: skip
            add_parts(job, first + start, n, scratch + SUMS, out, n_rows, hidden)


@cache
def compiled() -> int:
    """The code of `_output_item`, compiled or loaded once."""
    return c_function(_output_item, ITEM)


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
    h, step = acts + 2 * most * bank.hidden, step_of(bank.hidden, MOST_ROWS)
    _, hidden_code, gather_code = bf16_products.compiled()
    for number, (groups, pairs) in enumerate(waves):
        at_groups, at_pairs = program.array(groups), program.array(pairs)
        gather = [int(x.ctypes.data), bank.hidden, ids.shape[1], at_pairs, acts]
        program.add(gather_code, program.words(gather), program.words([len(pairs) // GROUP]))
        fields, items = bf16_products.hidden(bank, acts, at_groups, len(groups), h)
        program.add(hidden_code, program.words(fields), program.words([items]))
        output = {
            DOWN: bank.down.address,
            GROUPS: at_groups,
            N_GROUPS: len(groups),
            PAIRS: at_pairs,
            H: h,
            OUT: int(out.ctypes.data),
            TOKENS: len(x),
            WEIGHTS: int(weights.ctypes.data),
            SLOTS: ids.shape[1],
            _CONFIG: registers(),
            _FILL: filling(bank.down.format.name),
            _STEP: step,
            _CLEAR: number == 0,
        }
        job = program.words([output.get(field, 0) for field in range(_CLEAR + 1)])
        program.add(compiled(), job, program.words([-(-bank.hidden // step)]))
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
