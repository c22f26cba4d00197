"""Quantising the rows of an input: by the caller, or on all workers where there are many."""

from __future__ import annotations

from cpu_experts.cache import inner
from cpu_experts.layout import row_stride
from cpu_experts.memory import load_i64, store_i64
from cpu_experts.pool import run_job
from cpu_experts.quantise import prepare

JOB_BYTES = 64
_RUN = 16  # rows of an item
_MANY = 1 << 18  # values below which waking the pool costs more than it saves


def prepare_item(job, item, slot, scratch):
    """A run of rows of the job that `prepare_many` describes."""
    kind, x, cols = load_i64(job), load_i64(job + 8), load_i64(job + 24)
    terms, first = load_i64(job + 48), item * _RUN
    prepare(
        kind,
        x + 4 * first * cols,
        min(_RUN, load_i64(job + 16) - first),
        cols,
        load_i64(job + 32) + first * terms * row_stride(kind, cols),
        load_i64(job + 40) + 8 * first * terms,
        terms,
    )


@inner
def prepare_many(kind, x, n_rows, cols, rows, table, terms, job, scratch, pool, code):
    """As `prepare`, by calls of `prepare_item`, whose code this is; `job`: JOB_BYTES of memory."""
    if n_rows * cols < _MANY:
        pool = 0
    fields = (kind, x, n_rows, cols, rows, table, terms)
    for i in range(len(fields)):
        store_i64(job + 8 * i, fields[i])
    run_job(pool, code, job, (n_rows + _RUN - 1) // _RUN, scratch)
