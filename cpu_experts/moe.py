"""moe_forward: route -> gate and up -> SwiGLU -> down -> weighted sum.

(token, slot) pairs are sorted by expert, so that an expert's weights are read once for all its
tokens. Few tokens are one job (decode.py), many are two (prefill.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from numba import types

from cpu_experts import bf16_experts
from cpu_experts.activations import FLOAT32, Activations, as_array, as_rows, preparing
from cpu_experts.bank import ExpertBank
from cpu_experts.cache import c_function, entry, inner, jitable
from cpu_experts.decode import MOST_PAIRS, block_bytes, few_item, plan_runs, run_bytes
from cpu_experts.layout import row_stride
from cpu_experts.matmul import FEW_TOKENS, check_out
from cpu_experts.memory import load_i32, load_i64, store_i64
from cpu_experts.moe_job import (
    BLOCKS_DONE,
    GROUP_BYTES,
    H_FLOATS,
    JOB_BYTES,
    PRODUCTS,
    ROWS_DONE,
    RUNS,
)
from cpu_experts.pool import ITEM, pool_address, run_job, thread_count
from cpu_experts.prefill import ROW_RUN, cut_output, hidden_item, output_bytes, output_item
from cpu_experts.prepare import prepare_item, prepare_many
from cpu_experts.tensor import COLS, COUNT, KIND, N_ROWS
from cpu_experts.workspace import WORKSPACE

INT32 = np.dtype(np.int32)
_TINY = 1 << 20  # pairs x weights below which waking the pool costs more than it saves


@inner
def _group(ids, n, n_experts, groups, counts, pairs):
    """Sort the n pairs by expert. Returns (groups, pairs), or (-1, 0) where an id is too big.

    A negative id means that this slot's expert is computed elsewhere: the pair is left out. In a
    rehearsal others may write ids meanwhile: then no place outside the tables is written.
    """
    for e in range(n_experts):
        store_i64(counts + 8 * e, 0)
    for p in range(n):
        e = load_i32(ids + 4 * p)
        if e >= n_experts:
            return -1, 0
        if e >= 0:
            store_i64(counts + 8 * e, load_i64(counts + 8 * e) + 1)
    n_groups, first = 0, 0
    for e in range(n_experts):
        members = load_i64(counts + 8 * e)
        if members > 0:
            store_i64(groups + GROUP_BYTES * n_groups, e)
            store_i64(groups + GROUP_BYTES * n_groups + 8, first)
            store_i64(groups + GROUP_BYTES * n_groups + 16, members)
            n_groups += 1
        store_i64(counts + 8 * e, first)
        first += members
    for p in range(n):
        e = load_i32(ids + 4 * p)
        if 0 <= e < n_experts:
            place = load_i64(counts + 8 * e)
            store_i64(pairs + 8 * place, p)
            store_i64(counts + 8 * e, place + 1)
    return n_groups, first


@inner
def _gather(pairs, n_pairs, slots, table, gathered):
    """The activation address of every pair."""
    for p in range(n_pairs):
        token = load_i64(pairs + 8 * p) // slots
        store_i64(gathered + 8 * p, load_i64(table + 8 * token))


@inner
def _tables(x, n_tokens, gate, up, gate_table, up_table, rows, work, scratch, pool, code):
    """Row addresses of x in the kinds of gate and up; tables that are 0 are made at `rows`."""
    cols = load_i64(gate + 8 * COLS)
    gate_kind, up_kind = load_i64(gate + 8 * KIND), load_i64(up + 8 * KIND)
    if gate_table == 0:
        gate_table = rows + n_tokens * row_stride(gate_kind, cols)
        prepare_many(
            gate_kind, x, n_tokens, cols, rows, gate_table, 1, work, scratch, pool, code
        )  # fmt: skip
        rows = (gate_table + 8 * n_tokens + 63) // 64 * 64
        up_table = gate_table
        if up_kind != gate_kind:
            up_table = rows + n_tokens * row_stride(up_kind, cols)
            prepare_many(
                up_kind, x, n_tokens, cols, rows, up_table, 1, work, scratch, pool, code
            )  # fmt: skip
    return gate_table, up_table


@inner
def moe(
    n_tokens, slots, x, ids, weights, out, bank, gate_table, up_table, work, scratch, pool, codes,
    rehearsal,
):  # fmt: skip
    """moe_forward at addresses, on prepared memory: see workspace_bytes.

    A `rehearsal` (not 0) ends before the weights are met: then caches hold what comes before.
    Returns 0, or -1 for an id that the bank does not have.
    """
    gate, up, down = load_i64(bank), load_i64(bank + 8), load_i64(bank + 16)
    inter, hidden = load_i64(gate + 8 * N_ROWS), load_i64(down + 8 * N_ROWS)
    n_experts, n = load_i64(gate + 8 * COUNT), n_tokens * slots
    groups = work + JOB_BYTES
    counts = groups + GROUP_BYTES * n_experts
    pairs = counts + 8 * n_experts
    gates, ups, hs = pairs + 8 * n, pairs + 16 * n, pairs + 24 * n
    n_groups, n_pairs = _group(ids, n, n_experts, groups, counts, pairs)
    if n_groups < 0:
        return -1
    h_stride = row_stride(load_i64(down + 8 * KIND), inter)
    h = (hs + 8 * n + 63) // 64 * 64
    down_runs = h + n * h_stride
    few = down_runs + output_bytes(hidden)
    rows = (few + _few_bytes(n, inter, hidden) + 63) // 64 * 64
    gate_table, up_table = _tables(
        x, n_tokens, gate, up, gate_table, up_table, rows, work, scratch, pool,
        load_i64(codes + 24),
    )  # fmt: skip
    _gather(pairs, n_pairs, slots, gate_table, gates)
    _gather(pairs, n_pairs, slots, up_table, ups)
    for p in range(n_pairs):
        store_i64(hs + 8 * p, h + p * h_stride)
    if n_pairs * inter * hidden < _TINY:
        pool = 0
    threads = thread_count(pool)
    tables = (gate, up, down, groups, n_groups, pairs, gates, ups, h, h_stride, hs)
    fields = (*tables, out, n_tokens, weights, down_runs, slots)
    for i in range(len(fields)):
        store_i64(work + 8 * i, fields[i])
    if n_tokens <= FEW_TOKENS and n <= MOST_PAIRS:
        _place_few(work, few, n, inter, hidden)
        items = plan_runs(work, inter, hidden, threads)
        if rehearsal == 0:
            run_job(pool, load_i64(codes + 16), work, items, scratch)
        return 0
    if rehearsal != 0:
        return 0
    runs = (inter + ROW_RUN - 1) // ROW_RUN
    run_job(pool, load_i64(codes), work, n_groups * runs, scratch)
    items = cut_output(down_runs, hidden, threads)
    run_job(pool, load_i64(codes + 8), work, items, scratch)
    return 0


@inner
def _place_few(job, few, n_pairs, inter, hidden):
    """Where a job of few tokens keeps what only it needs: the bytes that _few_bytes counts."""
    runs = few + n_pairs * block_bytes(inter) + block_bytes(hidden)
    floats = runs + run_bytes(n_pairs, inter, hidden)
    store_i64(job + 8 * ROWS_DONE, few)
    store_i64(job + 8 * BLOCKS_DONE, few + block_bytes(hidden))
    store_i64(job + 8 * RUNS, runs)
    store_i64(job + 8 * H_FLOATS, floats)
    store_i64(job + 8 * PRODUCTS, floats + 4 * n_pairs * inter)


@jitable
def _few_bytes(n_pairs, inter, hidden):
    """Bytes that a job of few tokens needs beside the others': counters, runs, h and products."""
    if n_pairs > MOST_PAIRS:
        return 0
    counters = n_pairs * block_bytes(inter) + block_bytes(hidden)
    return counters + run_bytes(n_pairs, inter, hidden) + 4 * n_pairs * (inter + hidden)


_MOE = types.int64(*[types.int64] * 14)


# What `compiled` puts together, each to be compiled by itself: see warmup.py.
PARTS: dict[str, Callable[[], object]] = {
    "moe": partial(entry, moe.py_func, _MOE),
    "moe few tokens": partial(c_function, few_item, ITEM),
    "moe hidden": partial(c_function, hidden_item, ITEM),
    "moe output": partial(c_function, output_item, ITEM),
    "rows": preparing,
}


@cache
def compiled() -> tuple[Callable[..., int], np.ndarray, int]:
    """The entry, and its four item codes as an array with its address."""
    items = (hidden_item, output_item, few_item, prepare_item)
    codes = [c_function(item, ITEM) for item in items]
    kept = np.array(codes, dtype=np.int64)
    return entry(moe.py_func, _MOE), kept, int(kept.ctypes.data)


def moe_forward(
    x: np.ndarray | Activations,
    ids: np.ndarray,
    weights: np.ndarray,
    bank: ExpertBank,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Each token's experts, weighted and summed: float32 [T, hidden].

    x float32 [T, hidden] (or its Activations); ids int32 [T, k], a negative one is skipped; weights
    float32 [T, k]. A bank of one is a dense SwiGLU layer: ids 0, weights 1. ValueError on shapes,
    or an id that the bank does not have.
    """
    shared = isinstance(x, Activations)
    rows = x.x if isinstance(x, Activations) else as_rows(x, bank.hidden)
    n_tokens = len(rows)
    if rows.shape[1] != bank.hidden:
        raise ValueError(f"the input has {rows.shape[1]} columns, the experts read {bank.hidden}")
    if ids.ndim != 2 or ids.shape != weights.shape or len(ids) != n_tokens:
        raise ValueError(f"ids {ids.shape} and weights {weights.shape} must be [{n_tokens}, k]")
    ids, weights = as_array(ids, INT32), as_array(weights, FLOAT32)
    if out is None:
        out = np.empty((n_tokens, bank.hidden), dtype=np.float32)
    else:
        check_out(out, (n_tokens, bank.hidden))
    if n_tokens == 0:
        return out
    if bf16_experts.suits(ids.size, bank) and ids.max() < bank.n_experts:
        bf16_experts.forward(rows, ids, weights, bank, out)
        return out
    tables = (0, 0)
    if isinstance(x, Activations):
        tables = (x.table(bank.gate.format.activation), x.table(bank.up.format.activation))
    work = WORKSPACE.at_least(workspace_bytes(bank, n_tokens, ids.size, not shared))
    forward, _, codes = compiled()
    pool = pool_address()
    scratch = WORKSPACE.scratch
    arrays = [int(array.ctypes.data) for array in (rows, ids, weights, out)]
    if forward(*ids.shape, *arrays, bank.address, *tables, work, scratch, pool, codes, 0):
        raise ValueError(f"an expert id is {int(ids.max())}; the bank has {bank.n_experts} experts")
    return out


def workspace_bytes(bank: ExpertBank, n_tokens: int, n_pairs: int, quantise: bool) -> int:
    """Bytes that `moe` uses: job, groups, pair tables, h, and the quantised input."""
    tables = JOB_BYTES + (GROUP_BYTES + 8) * bank.n_experts + 4 * 8 * n_pairs
    total = tables + n_pairs * bank.down.activation_stride + 256
    total += output_bytes(bank.hidden) + _few_bytes(n_pairs, bank.inter, bank.hidden)
    if quantise:
        kinds = bank.gate.activation_stride + bank.up.activation_stride
        total += n_tokens * (kinds + 16)
    return total
