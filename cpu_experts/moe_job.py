"""What the items of a moe_forward job read: its fields, groups of pairs, a matrix's product."""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.matmul import kernel_for
from cpu_experts.memory import call_kernel, floats, load_i64
from cpu_experts.tensor import AUX, BASES, COLS, STRIDE

# Fields of the job, int64 each.
(
    GATE,
    UP,
    DOWN,
    GROUPS,
    N_GROUPS,
    PAIRS,
    GATE_TABLE,
    UP_TABLE,
    H,
    H_STRIDE,
    H_TABLE,
    OUT,
    TOKENS,
    WEIGHTS,
    DOWN_RUNS,
    SLOTS,
    # Of jobs for few tokens (decode.py).
    RUNS,
    N_HIDDEN,
    H_FLOATS,
    BLOCKS_DONE,
    PRODUCTS,
    ROWS_DONE,
) = range(22)
HIDDEN_DONE = 192  # a counter on a cache line of its own
JOB_BYTES = 256
# A group: (expert, first pair, pairs).
GROUP_BYTES = 24


@inner
def call_matrix(weight, matrix, row, n_rows, table, n_tokens, out, out_stride, scratch):
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


@inner
def add_scaled(target, source, factor, n):
    """target += factor * source, n float32."""
    sums, values = floats(target, n), floats(source, n)
    for i in range(n):
        sums[i] += factor * values[i]


@inner
def clear_rows(target, n_rows, stride, n):
    """n float32 of each of some rows, which are `stride` bytes apart, become 0."""
    for r in range(n_rows):
        values = floats(target + r * stride, n)
        for i in range(n):
            values[i] = 0.0
