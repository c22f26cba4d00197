"""Few tokens through their experts: one job, whose items shrink as its rows run out.

Time is then the reading of weights, and is lost in two ways: where threads wait for the last of
them, and where one stream of bytes ends and another begins (1.6 us were measured, as long as 10 KiB
take). So an item is a run of rows of one expert, of half a thread's share of what is left, down to
some 64 KiB; the runs of gate and up come first, those of down after them, in the same job. Who
takes a run of down while h is not complete asks for its first weights and waits for those who are
still at work on h. Blocks are finished by whoever completes them: a block of h is quantised, a
block of the output summed over the experts, always in the same order.
"""

from __future__ import annotations

from cpu_experts.activate import swiglu
from cpu_experts.cache import inner, jitable
from cpu_experts.kernels.streams import STREAMS
from cpu_experts.memory import (
    atomic_add,
    atomic_load,
    atomic_store,
    load_f32,
    load_i64,
    prefetch_stream,
    store_f32,
    store_i64,
)
from cpu_experts.moe_job import (
    BLOCKS_DONE,
    DOWN,
    GATE,
    GATE_TABLE,
    GROUP_BYTES,
    GROUPS,
    H_FLOATS,
    H_STRIDE,
    H_TABLE,
    HIDDEN_DONE,
    N_GROUPS,
    N_HIDDEN,
    OUT,
    PAIRS,
    PRODUCTS,
    ROWS_DONE,
    RUNS,
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
from cpu_experts.pool import relax
from cpu_experts.quantise import quantise_part
from cpu_experts.tensor import BASES, KIND, N_ROWS, STRIDE

MOST_PAIRS = 32
_BLOCK = 256  # values of h or the output that are finished together: whole blocks of every kind
_MOST_ROWS, _ROWS = 1024, 8  # of a run, and what its length is a multiple of
_LEAST_BYTES = 1 << 16  # of a run's weights
_HEAD = 1024  # bytes of a stream that are asked for before it is read
_AHEAD = 1 << 18  # bytes of a run that are asked for while h is not complete: the second cache's


@inner
def _run_length(left, row_bytes, threads):
    """Rows of the next run, when `left` rows of `row_bytes` are not in a run yet."""
    if threads == 1:
        return _MOST_ROWS
    size = max(_LEAST_BYTES // row_bytes, left // (2 * threads))
    return min(_MOST_ROWS, (size + _ROWS - 1) // _ROWS * _ROWS)


@inner
def _cut(runs, groups, rows, row_bytes, threads):
    """List `groups` times `rows` rows as runs, a word each; returns how many."""
    n, left = 0, groups * rows
    for group in range(groups):
        row = 0
        while row < rows:
            size = _run_length(left, row_bytes, threads)
            if row + size + _ROWS > rows:
                size = rows - row
            store_i64(runs + 8 * n, group << 48 | size << 32 | row)
            n, row, left = n + 1, row + size, left - size
    return n


@jitable
def run_bytes(groups, inter, hidden):
    """Bytes that the runs of a job take at most."""
    return 8 * groups * (inter // _ROWS + hidden // _ROWS + 2)


@jitable
def block_bytes(rows):
    """Bytes of the counters of the blocks of `rows` values."""
    return 8 * ((rows + _BLOCK - 1) // _BLOCK)


@inner
def _clear(start, n_bytes):
    for at in range(start, start + n_bytes, 8):
        store_i64(at, 0)


@inner
def plan_runs(job, inter, hidden, threads):
    """Fill RUNS and N_HIDDEN and clear the counters; returns the number of items."""
    groups, runs = load_i64(job + 8 * N_GROUPS), load_i64(job + 8 * RUNS)
    gate, up, down = load_i64(job), load_i64(job + 8 * UP), load_i64(job + 8 * DOWN)
    both = load_i64(gate + 8 * STRIDE) + load_i64(up + 8 * STRIDE)
    hidden_runs = _cut(runs, groups, inter, both, threads)
    store_i64(job + 8 * N_HIDDEN, hidden_runs)
    _clear(load_i64(job + 8 * BLOCKS_DONE), groups * block_bytes(inter))
    _clear(load_i64(job + 8 * ROWS_DONE), block_bytes(hidden))
    atomic_store(job + HIDDEN_DONE, 0)
    if groups == 0:  # nobody completes a block
        _clear(load_i64(job + 8 * OUT), 4 * load_i64(job + 8 * TOKENS) * hidden)
    down_stride = load_i64(down + 8 * STRIDE)
    return hidden_runs + _cut(runs + 8 * hidden_runs, groups, hidden, down_stride, threads)


def few_item(job, item, slot, scratch):
    """One run: of gate and up, or of down."""
    run = load_i64(load_i64(job + 8 * RUNS) + 8 * item)
    row, n_rows = run & 0xFFFFFFFF, run >> 32 & 0xFFFF
    if item < load_i64(job + 8 * N_HIDDEN):
        _hidden_run(job, run >> 48, row, n_rows, scratch)
        atomic_add(job + HIDDEN_DONE, 1)
    else:
        _output_run(job, run >> 48, row, n_rows, scratch)


@inner
def _prefetch_head(weight, matrix, row, n_rows):
    """Ask for the first bytes of a run of rows."""
    stride = load_i64(weight + 8 * STRIDE)
    start = load_i64(load_i64(weight + 8 * BASES) + 8 * matrix) + row * stride
    for line in range(0, min(_HEAD, n_rows * stride), 64):
        prefetch_stream(start + line)


@inner(inline="always")
def _hidden_run(job, group, row, n_rows, scratch):
    """h of one expert's pairs for a run of rows of gate and up."""
    gate, up, down = load_i64(job + 8 * GATE), load_i64(job + 8 * UP), load_i64(job + 8 * DOWN)
    inter = load_i64(gate + 8 * N_ROWS)
    place = load_i64(job + 8 * GROUPS) + group * GROUP_BYTES
    expert, first, pairs = load_i64(place), load_i64(place + 8), load_i64(place + 16)
    gates = scratch + (1 << 19)
    ups = gates + 4 * pairs * n_rows
    _prefetch_head(up, expert, row, n_rows)
    table = load_i64(job + 8 * GATE_TABLE) + 8 * first
    call_matrix(gate, expert, row, n_rows, table, pairs, gates, 4 * n_rows, scratch)
    table = load_i64(job + 8 * UP_TABLE) + 8 * first
    call_matrix(up, expert, row, n_rows, table, pairs, ups, 4 * n_rows, scratch)
    swiglu(gates, ups, pairs * n_rows)
    floats = load_i64(job + 8 * H_FLOATS) + 4 * first * inter
    for p in range(pairs):
        for i in range(n_rows):
            value = load_f32(gates + 4 * (p * n_rows + i))
            store_f32(floats + 4 * (p * inter + row + i), value)
    counters = load_i64(job + 8 * BLOCKS_DONE) + group * block_bytes(inter)
    for start in range(row // _BLOCK * _BLOCK, row + n_rows, _BLOCK):
        size = min(_BLOCK, inter - start)
        ours = min(row + n_rows, start + size) - max(row, start)
        if atomic_add(counters + 8 * (start // _BLOCK), ours) + ours < size:
            continue
        for p in range(pairs):
            h = load_i64(job + 8 * H) + (first + p) * load_i64(job + 8 * H_STRIDE)
            source = floats + 4 * (p * inter + start)
            quantise_part(load_i64(down + 8 * KIND), source, start, size, inter, h)


@inner
def _wait_for_hidden(job, weight, matrix, row, n_rows):
    """Wait until h is complete, and bring the run that comes next into the second cache.

    Memory would idle as long as the last runs of gate and up take. Rows are read as STREAMS
    quarters of a run (streams.py): their beginnings come first.
    """
    stride = load_i64(weight + 8 * STRIDE)
    start = load_i64(load_i64(weight + 8 * BASES) + 8 * matrix) + row * stride
    quarter = n_rows * stride // STREAMS
    waited, line, end = 0, 0, min(quarter, _AHEAD // STREAMS)
    while atomic_load(job + HIDDEN_DONE) < load_i64(job + 8 * N_HIDDEN):
        if line < end:
            for stream in range(STREAMS):
                prefetch_stream(start + stream * quarter + line)
            line += 64
        else:
            waited = relax(waited)


@inner(inline="always")
def _output_run(job, group, row, n_rows, scratch):
    """A run of rows of one expert's down, for all its pairs."""
    down, n_groups = load_i64(job + 8 * DOWN), load_i64(job + 8 * N_GROUPS)
    hidden = load_i64(down + 8 * N_ROWS)
    place = load_i64(job + 8 * GROUPS) + group * GROUP_BYTES
    expert, first, pairs = load_i64(place), load_i64(place + 8), load_i64(place + 16)
    if atomic_load(job + HIDDEN_DONE) < load_i64(job + 8 * N_HIDDEN):
        _wait_for_hidden(job, down, expert, row, n_rows)
    table = load_i64(job + 8 * H_TABLE) + 8 * first
    parts = load_i64(job + 8 * PRODUCTS) + 4 * (first * hidden + row)
    call_matrix(down, expert, row, n_rows, table, pairs, parts, 4 * hidden, scratch)
    counters = load_i64(job + 8 * ROWS_DONE)
    for start in range(row // _BLOCK * _BLOCK, row + n_rows, _BLOCK):
        size = min(_BLOCK, hidden - start)
        ours = min(row + n_rows, start + size) - max(row, start)
        if atomic_add(counters + 8 * (start // _BLOCK), ours) + ours == size * n_groups:
            _sum_block(job, start, size)


@inner
def _sum_block(job, start, size):
    """Columns of the output: the weighted sum over all experts, for all tokens."""
    hidden = load_i64(load_i64(job + 8 * DOWN) + 8 * N_ROWS)
    out = load_i64(job + 8 * OUT) + 4 * start
    clear_rows(out, load_i64(job + 8 * TOKENS), 4 * hidden, size)
    last = load_i64(job + 8 * GROUPS) + (load_i64(job + 8 * N_GROUPS) - 1) * GROUP_BYTES
    for p in range(load_i64(last + 8) + load_i64(last + 16)):
        pair = load_i64(load_i64(job + 8 * PAIRS) + 8 * p)
        weight = load_f32(load_i64(job + 8 * WEIGHTS) + 4 * pair)
        target = out + 4 * (pair // load_i64(job + 8 * SLOTS)) * hidden
        part = load_i64(job + 8 * PRODUCTS) + 4 * (p * hidden + start)
        add_scaled(target, part, weight, size)
