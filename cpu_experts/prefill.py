"""Many tokens through their experts: two jobs, gate and up to h, then down to the output.

An item of the first is a run of rows of gate and up of one expert; its products stay in the
thread's scratch, become h by SwiGLU, and are kept quantised for the second. There an item is a run
of rows of the output: it loops over the experts, so the sum needs no atomics and does not depend on
the number of threads.
"""

from __future__ import annotations

from cpu_experts.activate import swiglu
from cpu_experts.cache import inner, jitable
from cpu_experts.memory import load_f32, load_i64, prefetch, store_i64
from cpu_experts.moe_job import (
    DOWN,
    DOWN_RUNS,
    GATE_TABLE,
    GROUP_BYTES,
    GROUPS,
    H_STRIDE,
    H_TABLE,
    N_GROUPS,
    OUT,
    PAIRS,
    SLOTS,
    TOKENS,
    UP,
    UP_TABLE,
    WEIGHTS,
    H,
    add_scaled,
    call_matrix,
    clear_rows,
)
from cpu_experts.quantise import quantise_part
from cpu_experts.tensor import KIND, N_ROWS

TOKEN_TILE = 256  # tokens of one pass over a run of rows
ROW_RUN = 256  # rows of gate and up in an item: one activation block of every kind
_LEAST_ROWS = 32  # of a run of the output's
_LATER = 4  # pairs between one that is added and one whose row is fetched


def hidden_item(job, item, slot, scratch):
    """h of one expert's tokens for one run of rows of gate and up."""
    gate, up, down = load_i64(job), load_i64(job + 8 * UP), load_i64(job + 8 * DOWN)
    inter = load_i64(gate + 8 * N_ROWS)
    runs = (inter + ROW_RUN - 1) // ROW_RUN
    group = load_i64(job + 8 * GROUPS) + item // runs * GROUP_BYTES
    expert, first, pairs = load_i64(group), load_i64(group + 8), load_i64(group + 16)
    row = item % runs * ROW_RUN
    n_rows = min(ROW_RUN, inter - row)
    gates = scratch + (1 << 19)
    ups = gates + TOKEN_TILE * ROW_RUN * 4
    for start in range(first, first + pairs, TOKEN_TILE):
        n = min(TOKEN_TILE, first + pairs - start)
        table = load_i64(job + 8 * GATE_TABLE) + 8 * start
        call_matrix(gate, expert, row, n_rows, table, n, gates, ROW_RUN * 4, scratch)
        table = load_i64(job + 8 * UP_TABLE) + 8 * start
        call_matrix(up, expert, row, n_rows, table, n, ups, ROW_RUN * 4, scratch)
        for t in range(n):
            h = load_i64(job + 8 * H) + (start + t) * load_i64(job + 8 * H_STRIDE)
            values = gates + t * ROW_RUN * 4
            swiglu(values, ups + t * ROW_RUN * 4, n_rows)
            quantise_part(load_i64(down + 8 * KIND), values, row, n_rows, inter, h)


def output_item(job, item, slot, scratch):
    """One run of rows of the output: the weighted sum over all experts, for all tokens."""
    down = load_i64(job + 8 * DOWN)
    hidden, run = load_i64(down + 8 * N_ROWS), load_i64(load_i64(job + 8 * DOWN_RUNS) + 8 * item)
    row, n_rows = run & 0xFFFFFFFF, run >> 32
    out = load_i64(job + 8 * OUT) + 4 * row
    clear_rows(out, load_i64(job + 8 * TOKENS), 4 * hidden, n_rows)
    parts = scratch + (1 << 19)
    for g in range(load_i64(job + 8 * N_GROUPS)):
        group = load_i64(job + 8 * GROUPS) + g * GROUP_BYTES
        expert, first, pairs = load_i64(group), load_i64(group + 8), load_i64(group + 16)
        for start in range(first, first + pairs, TOKEN_TILE):
            n = min(TOKEN_TILE, first + pairs - start)
            table = load_i64(job + 8 * H_TABLE) + 8 * start
            call_matrix(down, expert, row, n_rows, table, n, parts, 4 * n_rows, scratch)
            add_parts(job, start, n, parts, out, n_rows, hidden)


@inner
def add_parts(job, start, n, parts, out, n_rows, hidden):
    """Add the products of n pairs from `start` on, times their weights, to their tokens' rows.

    Those are anywhere, so they are fetched some pairs before.
    """
    pairs, slots = load_i64(job + 8 * PAIRS) + 8 * start, load_i64(job + 8 * SLOTS)
    for t in range(n):
        later = load_i64(pairs + 8 * min(t + _LATER, n - 1)) // slots
        for line in range(0, 4 * n_rows, 64):
            prefetch(out + 4 * later * hidden + line)
        pair = load_i64(pairs + 8 * t)
        weight = load_f32(load_i64(job + 8 * WEIGHTS) + 4 * pair)
        target = out + 4 * (pair // slots) * hidden
        add_scaled(target, parts + 4 * t * n_rows, weight, n_rows)


@inner
def cut_output(runs, rows, threads):
    """List the output's rows as runs, shorter toward the end; returns how many.

    A run packs the sums of all activations again, so few long ones are quicker than many short.
    One thread has nobody to end with.
    """
    n, row = 0, 0
    while row < rows:
        share = (rows - row) // (2 * threads) // 32 * 32 if threads > 1 else rows
        size = min(ROW_RUN, max(_LEAST_ROWS, share), rows - row)
        store_i64(runs + 8 * n, size << 32 | row)
        n, row = n + 1, row + size
    return n


@jitable
def output_bytes(hidden):
    """Bytes of the runs that `cut_output` lists."""
    return 8 * (hidden // _LEAST_ROWS + 1)
