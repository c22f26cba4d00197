"""moe_forward: route -> gate and up -> SwiGLU -> down -> weighted sum.

(token, slot) pairs are sorted by expert, so that an expert's weights are read once for all its
tokens. Two jobs run per call. In the first an item is a run of rows of gate and up of one expert:
its products stay in the thread's scratch, become h by SwiGLU, and are kept quantised for the
second. There an item is a run of rows of the output: it loops over the experts, so the sum needs no
atomics and does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import njit, types

from cpu_experts.activate import swiglu
from cpu_experts.activations import Activations, as_rows
from cpu_experts.bank import ExpertBank
from cpu_experts.cache import c_function, entry
from cpu_experts.layout import row_stride
from cpu_experts.matmul import check_out, kernel_for, rows_per_item
from cpu_experts.memory import call_kernel, load_f32, load_i64, store_f32, store_i64
from cpu_experts.pool import ITEM, pool_address, run_job, thread_count
from cpu_experts.quantise import prepare_rows, quantise_part
from cpu_experts.tensor import AUX, BASES, COLS, COUNT, KIND, N_ROWS, STRIDE
from cpu_experts.workspace import WORKSPACE

TOKEN_TILE = 128  # tokens of one pass over a run of rows
ROW_RUN = 256  # rows of gate and up in an item: one activation block of every kind
_TINY = 1 << 20  # pairs x weights below which waking the pool costs more than it saves
_row_stride = row_stride.py_func

# Fields of the job, int64 each.
(
    _GATE,
    _UP,
    _DOWN,
    _GROUPS,
    _N_GROUPS,
    _PAIRS,
    _GATE_TABLE,
    _UP_TABLE,
    _H,
    _H_STRIDE,
    _H_TABLE,
    _OUT,
    _TOKENS,
    _WEIGHTS,
    _DOWN_RUN,
    _SLOTS,
) = range(16)
JOB_BYTES = 128
# A group: (expert, first pair, pairs).
_GROUP_BYTES = 24


@njit(error_model="numpy")
def _call(weight, matrix, row, n_rows, table, n_tokens, out, out_stride, scratch):
    """A run of rows of one matrix of a stack against n_tokens activations."""
    call_kernel(
        kernel_for(weight, n_tokens),
        (
            load_i64(load_i64(weight + 8 * BASES) + 8 * matrix),
            load_i64(weight + 8 * STRIDE),
            row,
            n_rows,
            load_i64(weight + 8 * COLS),
            load_i64(load_i64(weight + 8 * AUX) + 8 * matrix),
            table,
            n_tokens,
            out,
            out_stride,
            scratch,
        ),
    )


def _hidden_item(job, item, slot, scratch):
    """h of one expert's tokens for one run of rows of gate and up."""
    gate, up, down = load_i64(job), load_i64(job + 8 * _UP), load_i64(job + 8 * _DOWN)
    inter = load_i64(gate + 8 * N_ROWS)
    runs = (inter + ROW_RUN - 1) // ROW_RUN
    group = load_i64(job + 8 * _GROUPS) + item // runs * _GROUP_BYTES
    expert, first, pairs = load_i64(group), load_i64(group + 8), load_i64(group + 16)
    row = item % runs * ROW_RUN
    n_rows = min(ROW_RUN, inter - row)
    gates = scratch + (1 << 19)
    ups = gates + TOKEN_TILE * ROW_RUN * 4
    for start in range(first, first + pairs, TOKEN_TILE):
        n = min(TOKEN_TILE, first + pairs - start)
        table = load_i64(job + 8 * _GATE_TABLE) + 8 * start
        _call(gate, expert, row, n_rows, table, n, gates, ROW_RUN * 4, scratch)
        table = load_i64(job + 8 * _UP_TABLE) + 8 * start
        _call(up, expert, row, n_rows, table, n, ups, ROW_RUN * 4, scratch)
        for t in range(n):
            h = load_i64(job + 8 * _H) + (start + t) * load_i64(job + 8 * _H_STRIDE)
            values = gates + t * ROW_RUN * 4
            swiglu(values, ups + t * ROW_RUN * 4, n_rows)
            quantise_part(load_i64(down + 8 * KIND), values, row, n_rows, inter, h)


def _output_item(job, item, slot, scratch):
    """One run of rows of the output: the weighted sum over all experts, for all tokens."""
    down = load_i64(job + 8 * _DOWN)
    hidden, step = load_i64(down + 8 * N_ROWS), load_i64(job + 8 * _DOWN_RUN)
    row = item * step
    n_rows = min(step, hidden - row)
    out = load_i64(job + 8 * _OUT) + 4 * row
    for t in range(load_i64(job + 8 * _TOKENS)):
        for i in range(n_rows):
            store_f32(out + 4 * (t * hidden + i), 0.0)
    parts = scratch + (1 << 19)
    for g in range(load_i64(job + 8 * _N_GROUPS)):
        group = load_i64(job + 8 * _GROUPS) + g * _GROUP_BYTES
        expert, first, pairs = load_i64(group), load_i64(group + 8), load_i64(group + 16)
        for start in range(first, first + pairs, TOKEN_TILE):
            n = min(TOKEN_TILE, first + pairs - start)
            table = load_i64(job + 8 * _H_TABLE) + 8 * start
            _call(down, expert, row, n_rows, table, n, parts, 4 * n_rows, scratch)
            for t in range(n):
                pair = load_i64(load_i64(job + 8 * _PAIRS) + 8 * (start + t))
                weight = load_f32(load_i64(job + 8 * _WEIGHTS) + 4 * pair)
                target = out + 4 * (pair // load_i64(job + 8 * _SLOTS)) * hidden
                _accumulate(target, parts + 4 * t * n_rows, weight, n_rows)


@njit(error_model="numpy")
def _accumulate(target, source, factor, n):
    for i in range(n):
        value = load_f32(target + 4 * i) + factor * load_f32(source + 4 * i)
        store_f32(target + 4 * i, value)


@njit(error_model="numpy")
def _group(ids, n_experts, groups, counts, pairs):
    """Sort the pairs by expert. Returns (groups, pairs), or (-1, 0) where an id is out of range.

    A negative id means that this slot's expert is computed elsewhere: the pair is left out.
    """
    for e in range(n_experts):
        store_i64(counts + 8 * e, 0)
    flat = ids.reshape(ids.size)
    for e in flat:
        if e >= n_experts:
            return -1, 0
        if e >= 0:
            store_i64(counts + 8 * e, load_i64(counts + 8 * e) + 1)
    n_groups, first = 0, 0
    for e in range(n_experts):
        n = load_i64(counts + 8 * e)
        if n > 0:
            store_i64(groups + _GROUP_BYTES * n_groups, e)
            store_i64(groups + _GROUP_BYTES * n_groups + 8, first)
            store_i64(groups + _GROUP_BYTES * n_groups + 16, n)
            n_groups += 1
        store_i64(counts + 8 * e, first)
        first += n
    for p in range(flat.size):
        e = flat[p]
        if e >= 0:
            place = load_i64(counts + 8 * e)
            store_i64(pairs + 8 * place, p)
            store_i64(counts + 8 * e, place + 1)
    return n_groups, first


@njit(error_model="numpy")
def _gather(pairs, n_pairs, slots, table, gathered):
    """The activation address of every pair."""
    for p in range(n_pairs):
        token = load_i64(pairs + 8 * p) // slots
        store_i64(gathered + 8 * p, load_i64(table + 8 * token))


@njit(error_model="numpy")
def _tables(x, n_tokens, gate, up, gate_table, up_table, rows):
    """Row addresses of x in the kinds of gate and up; tables that are 0 are made at `rows`."""
    cols = load_i64(gate + 8 * COLS)
    gate_kind, up_kind = load_i64(gate + 8 * KIND), load_i64(up + 8 * KIND)
    if gate_table == 0:
        gate_table = rows + n_tokens * row_stride(gate_kind, cols)
        prepare_rows(gate_kind, x, n_tokens, cols, rows, gate_table)
        rows = (gate_table + 8 * n_tokens + 63) // 64 * 64
        up_table = gate_table
        if up_kind != gate_kind:
            up_table = rows + n_tokens * row_stride(up_kind, cols)
            prepare_rows(up_kind, x, n_tokens, cols, rows, up_table)
    return gate_table, up_table


def _moe(x, ids, weights, out, bank, gate_table, up_table, work, scratch, pool, codes):
    """moe_forward on prepared memory: see _workspace_bytes. Returns 0, or -1 for a bad id."""
    n_tokens, slots = ids.shape
    gate, up, down = load_i64(bank), load_i64(bank + 8), load_i64(bank + 16)
    inter, hidden = load_i64(gate + 8 * N_ROWS), load_i64(down + 8 * N_ROWS)
    n_experts, n = load_i64(gate + 8 * COUNT), ids.size
    groups = work + JOB_BYTES
    counts = groups + _GROUP_BYTES * n_experts
    pairs = counts + 8 * n_experts
    gates, ups, hs = pairs + 8 * n, pairs + 16 * n, pairs + 24 * n
    n_groups, n_pairs = _group(ids, n_experts, groups, counts, pairs)
    if n_groups < 0:
        return -1
    h_stride = row_stride(load_i64(down + 8 * KIND), inter)
    h = (hs + 8 * n + 63) // 64 * 64
    x_address = np.int64(x.ctypes.data)
    gate_table, up_table = _tables(
        x_address, n_tokens, gate, up, gate_table, up_table, h + n * h_stride
    )
    _gather(pairs, n_pairs, slots, gate_table, gates)
    _gather(pairs, n_pairs, slots, up_table, ups)
    for p in range(n_pairs):
        store_i64(hs + 8 * p, h + p * h_stride)
    if n_pairs * inter * hidden < _TINY:
        pool = 0
    threads = thread_count(pool)
    step = min(ROW_RUN, rows_per_item(hidden, load_i64(down + 8 * STRIDE) * n_groups, threads))
    fields = (
        gate,
        up,
        down,
        groups,
        n_groups,
        pairs,
        gates,
        ups,
        h,
        h_stride,
        hs,
        np.int64(out.ctypes.data),
        n_tokens,
        np.int64(weights.ctypes.data),
        step,
        slots,
    )
    for i in range(len(fields)):
        store_i64(work + 8 * i, fields[i])
    runs = (inter + ROW_RUN - 1) // ROW_RUN
    run_job(pool, load_i64(codes), work, n_groups * runs, scratch)
    run_job(pool, load_i64(codes + 8), work, (hidden + step - 1) // step, scratch)
    return 0


_FLOATS = types.Array(types.float32, 2, "C", aligned=True)
_IDS = types.Array(types.int32, 2, "C", aligned=True)
_MOE = types.int64(_FLOATS, _IDS, _FLOATS, _FLOATS, *[types.int64] * 7)


@cache
def compiled() -> tuple[Callable[..., int], np.ndarray, int]:
    """The entry, and its two item codes as an array with its address."""
    codes = [c_function(_hidden_item, ITEM), c_function(_output_item, ITEM)]
    kept = np.array(codes, dtype=np.int64)
    return entry(_moe, _MOE), kept, int(kept.ctypes.data)


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
    ids = np.require(ids, dtype=np.int32, requirements=("C", "A", "W"))
    weights = np.require(weights, dtype=np.float32, requirements=("C", "A", "W"))
    if out is None:
        out = np.empty((n_tokens, bank.hidden), dtype=np.float32)
    else:
        check_out(out, (n_tokens, bank.hidden))
    if n_tokens == 0:
        return out
    tables = (0, 0)
    if isinstance(x, Activations):
        tables = (x.table(bank.gate.format.activation), x.table(bank.up.format.activation))
    work = WORKSPACE.at_least(_workspace_bytes(bank, n_tokens, ids.size, not shared))
    forward, _, codes = compiled()
    pool = pool_address()
    scratch = WORKSPACE.scratch
    if forward(rows, ids, weights, out, bank.address, *tables, work, scratch, pool, codes):
        raise ValueError(f"an expert id is {int(ids.max())}; the bank has {bank.n_experts} experts")
    return out


def _workspace_bytes(bank: ExpertBank, n_tokens: int, n_pairs: int, quantise: bool) -> int:
    """Bytes that `_moe` uses: job, groups, pair tables, h, and the quantised input."""
    tables = JOB_BYTES + (_GROUP_BYTES + 8) * bank.n_experts + 4 * 8 * n_pairs
    total = tables + n_pairs * bank.down.activation_stride + 256
    if quantise:
        kinds = bank.gate.activation_stride + bank.up.activation_stride
        total += n_tokens * (kinds + 16)
    return total
