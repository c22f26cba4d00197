"""The steps of a transformer's token for a program (program.py): what every architecture shares.

Each is a function of an address, its job, whose int64 fields are named above it. Activations lie at
fixed addresses as float32 rows, and quantised beside them in the forms that weights ask for: a
table of row addresses for each kind and number of terms. Attention and routing are the models' own.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import inner
from cpu_experts.decode import plan_runs
from cpu_experts.memory import (
    call_kernel,
    floats,
    load_f64,
    load_i32,
    load_i64,
    store_i64,
)
from cpu_experts.moe_job import GATE_TABLE, GROUP_BYTES, GROUPS, PAIRS, UP_TABLE, call_matrix
from cpu_experts.tensor import AUX, BASES, COLS, STRIDE

# Of `embed`: the file's row of a token, as floats.
_WEIGHT, _DEQUANT, _TOKEN, _EMBEDDED = range(4)


def embed(job, item, slot, scratch):
    """The row of the embedding that the word at TOKEN names."""
    weight = load_i64(job + 8 * _WEIGHT)
    call_kernel(
        load_i64(job + 8 * _DEQUANT),
        (
            load_i64(load_i64(weight + 8 * BASES)),
            load_i64(weight + 8 * STRIDE),
            load_i64(load_i64(job + 8 * _TOKEN)),
            1,
            load_i64(weight + 8 * COLS),
            load_i64(load_i64(weight + 8 * AUX)),
            0,
            0,
            load_i64(job + 8 * _EMBEDDED),
            0,
            scratch,
        ),
    )


# Of `norm`; ADD 0: there is nothing to add; EPS is a float64.
_X, _ADD, _GAIN, _N, _EPS, _NORMED = range(6)


@inner(fastmath={"reassoc", "contract"})
def rms_norm(x, weight, eps, out):
    """x / rms(x) * weight over float32 arrays [n], into `out`."""
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    factor = np.float32(1.0 / np.sqrt(total / x.shape[0] + eps))
    for i in range(x.shape[0]):
        out[i] = x[i] * factor * weight[i]


@inner
def add_rows(x, add):
    """x += add, float32 arrays [n]."""
    for i in range(x.shape[0]):
        x[i] += add[i]


def norm(job, item, slot, scratch):
    """RMSNorm of a row, to which another is added first, in place."""
    n, add = load_i64(job + 8 * _N), load_i64(job + 8 * _ADD)
    x = floats(load_i64(job + 8 * _X), n)
    if add != 0:
        add_rows(x, floats(add, n))
    weight, out = floats(load_i64(job + 8 * _GAIN), n), floats(load_i64(job + 8 * _NORMED), n)
    rms_norm(x, weight, load_f64(job + 8 * _EPS), out)


def add(job, item, slot, scratch):
    """x += another row: the addresses of both, and their width."""
    n = load_i64(job + 16)
    add_rows(floats(load_i64(job), n), floats(load_i64(job + 8), n))


# Of `product`: matrices that are multiplied in one step, each with its own inputs; a run is a word.
_RUNS, _PARTS = range(2)
_MATRIX, _INPUT, _TERMS, _OUT, _BIAS = range(5)
PART_BYTES = 40


def product(job, item, slot, scratch):
    """A run of rows of one of the matrices: out = W x + bias."""
    run = load_i64(load_i64(job + 8 * _RUNS) + 8 * item)
    part = load_i64(job + 8 * _PARTS) + (run >> 48) * PART_BYTES
    row, n_rows = run & 0xFFFFFFFF, run >> 32 & 0xFFFF
    weight, bias = load_i64(part + 8 * _MATRIX), load_i64(part + 8 * _BIAS)
    table, terms = load_i64(part + 8 * _INPUT), load_i64(part + 8 * _TERMS)
    out = load_i64(part + 8 * _OUT) + 4 * row
    call_matrix(weight, 0, row, n_rows, table, terms, out, 0, scratch)
    if bias != 0:
        add_rows(floats(out, n_rows), floats(bias + 4 * row, n_rows))


# Of `begin_experts`.
_JOB, _IDS, _CHOSEN, _ITEMS, _GATE_INPUT, _UP_INPUT, _INTER, _HIDDEN, _THREADS = range(9)


def begin_experts(job, item, slot, scratch):
    """Put one token's experts into the job of the next step (decode.py), in the order of ids."""
    experts, ids = load_i64(job + 8 * _JOB), load_i64(job + 8 * _IDS)
    groups, pairs = load_i64(experts + 8 * GROUPS), load_i64(experts + 8 * PAIRS)
    gate_table, up_table = load_i64(experts + 8 * GATE_TABLE), load_i64(experts + 8 * UP_TABLE)
    for pair in range(load_i64(job + 8 * _CHOSEN)):
        expert, place = load_i32(ids + 4 * pair), pair
        while place > 0 and load_i64(groups + GROUP_BYTES * (place - 1)) > expert:
            store_i64(groups + GROUP_BYTES * place, load_i64(groups + GROUP_BYTES * (place - 1)))
            store_i64(pairs + 8 * place, load_i64(pairs + 8 * (place - 1)))
            place -= 1
        store_i64(groups + GROUP_BYTES * place, expert)
        store_i64(pairs + 8 * place, pair)
        store_i64(gate_table + 8 * pair, load_i64(load_i64(job + 8 * _GATE_INPUT)))
        store_i64(up_table + 8 * pair, load_i64(load_i64(job + 8 * _UP_INPUT)))
    inter, hidden = load_i64(job + 8 * _INTER), load_i64(job + 8 * _HIDDEN)
    items = plan_runs(experts, inter, hidden, load_i64(job + 8 * _THREADS))
    store_i64(load_i64(job + 8 * _ITEMS), items)
