"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) of one token, as steps of a program.

A token leaves one latent, normed, and one key that all heads share, rotated, in the cache. Queries
are absorbed into the latents' space, so all heads attend over the latents themselves. Steps are
functions of a job's address (program.py), whose int64 fields are named above each.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.attend import SCORES, attend
from cpu_experts.cache import inner
from cpu_experts.memory import call_item, call_kernel, floats, load_f64, load_i64, store_i64
from cpu_experts.moe_job import call_matrix
from cpu_experts.prepare import JOB_BYTES
from cpu_experts.program_steps import rms_norm
from cpu_experts.tensor import AUX, BASES, COLS, KIND, N_ROWS, STRIDE

LOCALS = 3 << 18  # offset in scratch, behind what kernels use of it
LOCAL_BYTES = 1 << 18

# Of `keep_latent`: KV is what attn_kv_a_mqa gave, NORM the gain, TURNS [context, rope / 2, 2].
_KV, _NORM, _RANK, _ROPE, _EPS, _TURNS, _POSITION, _ROWS = range(8)


def keep_latent(job, item, slot, scratch):
    """The token's row of the cache: the latent, normed, and the shared key, rotated."""
    rank, rope = load_i64(job + 8 * _RANK), load_i64(job + 8 * _ROPE)
    position = load_i64(load_i64(job + 8 * _POSITION))
    kv = load_i64(job + 8 * _KV)
    row = load_i64(job + 8 * _ROWS) + 4 * position * (rank + rope)
    gain = floats(load_i64(job + 8 * _NORM), rank)
    rms_norm(floats(kv, rank), gain, load_f64(job + 8 * _EPS), floats(row, rank))
    turns = load_i64(job + 8 * _TURNS) + 4 * position * rope
    _rotate(kv + 4 * rank, turns, row + 4 * rank, rope)


@inner
def _rotate(source, turns, target, n):
    """Turn n / 2 pairs of float32 by as many (cosine, sine)."""
    x, turn, out = floats(source, n), floats(turns, n), floats(target, n)
    for i in range(0, n, 2):
        a, b = x[i], x[i + 1]
        out[i] = a * turn[i] - b * turn[i + 1]
        out[i + 1] = b * turn[i] + a * turn[i + 1]


# Of `attend_latents`. DEQUANT is 0 where the file holds the keys' projection transposed, as
# absorbing wants it; SCALE is a float64; PREPARE is the address of
# `prepare_item`. SHARE heads are an item: they read the cache together.
(
    _SHARE,
    _HEADS,
    _Q,
    _Q_TABLE,
    _Q_TERMS,
    _NOPE,
    _ROPE_DIM,
    _LATENT,
    _TURNS_OF_ALL,
    _PLACE,
    _CACHE,
    _SCALE,
    _K,
    _K_TERMS,
    _DEQUANT,
    _V,
    _V_TERMS,
    _VALUES,
    _PREPARE,
) = range(19)


def attend_latents(job, item, slot, scratch):
    """Some heads, from their queries to their values, over the latents themselves."""
    share, latent = load_i64(job + 8 * _SHARE), load_i64(job + 8 * _LATENT)
    width = latent + load_i64(job + 8 * _ROPE_DIM)
    first = item * share
    heads = min(share, load_i64(job + 8 * _HEADS) - first)
    queries = scratch + LOCALS
    context = queries + 4 * share * width
    rest = context + 4 * share * latent
    for head in range(heads):
        _query(job, first + head, queries + 4 * head * width, rest, scratch)
    n_keys = load_i64(load_i64(job + 8 * _PLACE)) + 1
    attend(
        floats(queries, (heads, width)),
        floats(load_i64(job + 8 * _CACHE), (n_keys, width)),
        0,
        0,
        np.float32(load_f64(job + 8 * _SCALE)),
        floats(rest, (heads, SCORES)),
        floats(context, (heads, latent)),
    )
    v, terms = load_i64(job + 8 * _V), load_i64(job + 8 * _V_TERMS)
    rows = load_i64(v + 8 * N_ROWS)
    for head in range(heads):
        table = _forms(job, v, context + 4 * head * latent, terms, rest)
        out = load_i64(job + 8 * _VALUES) + 4 * (first + head) * rows
        call_matrix(v, first + head, 0, rows, table, terms, out, 0, scratch)


@inner
def _forms(job, weight, x, terms, memory):
    """The table of x as a matrix reads it, made at `memory`: a job of `prepare_item`."""
    kind, cols = load_i64(weight + 8 * KIND), load_i64(weight + 8 * COLS)
    rows = (memory + 16 + JOB_BYTES + 63) // 64 * 64
    fields = (kind, x, 1, cols, rows, memory, terms)
    for i in range(len(fields)):
        store_i64(memory + 16 + 8 * i, fields[i])
    call_item(load_i64(job + 8 * _PREPARE), (memory + 16, 0, 0, rows))
    return memory


@inner(inline="always")
def _query(job, head, query, memory, scratch):
    """One head's query on the latent and on the shared key, side by side at `query`."""
    nope, rope = load_i64(job + 8 * _NOPE), load_i64(job + 8 * _ROPE_DIM)
    latent, n_rows = load_i64(job + 8 * _LATENT), nope + rope
    table, terms = load_i64(job + 8 * _Q_TABLE), load_i64(job + 8 * _Q_TERMS)
    q = load_i64(job + 8 * _Q)
    call_matrix(q, 0, head * n_rows, n_rows, table, terms, memory, 0, scratch)
    place = load_i64(load_i64(job + 8 * _PLACE))
    turns = load_i64(job + 8 * _TURNS_OF_ALL) + 4 * place * rope
    _rotate(memory + 4 * nope, turns, query + 4 * latent, rope)
    k, terms = load_i64(job + 8 * _K), load_i64(job + 8 * _K_TERMS)
    rest = memory + 4 * n_rows
    dequant = load_i64(job + 8 * _DEQUANT)
    if dequant == 0:
        table = _forms(job, k, memory, terms, rest)
        call_matrix(k, head, 0, latent, table, terms, query, 0, scratch)
    else:
        _absorb(k, dequant, head, floats(memory, nope), floats(query, latent), rest, scratch)


@inner(fastmath={"contract"})
def _absorb(k, dequant, head, q, out, row, scratch):
    """out = q @ matrix `head` of k, whose rows are dequantised one after the other at `row`."""
    base = load_i64(load_i64(k + 8 * BASES) + 8 * head)
    stride, cols = load_i64(k + 8 * STRIDE), load_i64(k + 8 * COLS)
    aux = load_i64(load_i64(k + 8 * AUX) + 8 * head)
    weights = floats(row, cols)
    for i in range(cols):
        out[i] = 0.0
    for r in range(q.shape[0]):
        call_kernel(dequant, (base, stride, r, 1, cols, aux, 0, 0, row, 0, scratch))
        for i in range(cols):
            out[i] += q[r] * weights[i]
