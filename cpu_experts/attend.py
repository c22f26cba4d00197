"""Attention of one token's queries over the rows of a cache, in float32, a tile of keys at a time.

Keys and values lie in the same rows, at columns of their own: the values may be a part of the key
(latent attention). Heads that share keys are done together, so that a key is fetched once for all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_experts.activate import exp_f32
from cpu_experts.memory import prefetch

TILE = 64  # keys between two looks at the largest score
AHEAD = 16  # keys between the one that is asked for and the one that is used
SCORES = TILE + 2  # float32 of memory for a head: a tile's scores, the largest, the sum of weights


@njit(fastmath={"reassoc", "contract"}, error_model="numpy")
def _score_four(query, rows, first, column, scores, at):
    """Scores of four keys: rows[first : first + 4, column :] @ query."""
    end = column + query.shape[0]  # slices: an index that is a sum is no vector load to Numba
    k, m = rows[first, column:end], rows[first + 1, column:end]
    n, o = rows[first + 2, column:end], rows[first + 3, column:end]
    a = b = c = d = np.float32(0.0)
    for i in range(query.shape[0]):
        a += query[i] * k[i]
        b += query[i] * m[i]
        c += query[i] * n[i]
        d += query[i] * o[i]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = a, b, c, d


@njit(fastmath={"reassoc", "contract"}, error_model="numpy")
def _score(query, row, column):
    key = row[column : column + query.shape[0]]
    total = np.float32(0.0)
    for i in range(query.shape[0]):
        total += query[i] * key[i]
    return total


@njit(fastmath={"contract"}, error_model="numpy")
def _add_four(weights, at, rows, first, column, context):
    """context += weights[at : at + 4] @ rows[first : first + 4, column :]."""
    a, b, c, d = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
    end = column + context.shape[0]
    v, w = rows[first, column:end], rows[first + 1, column:end]
    x, y = rows[first + 2, column:end], rows[first + 3, column:end]
    for i in range(context.shape[0]):
        context[i] += (a * v[i] + b * w[i]) + (c * x[i] + d * y[i])


@njit(fastmath={"contract"}, error_model="numpy")
def _add(weight, row, column, context):
    value = row[column : column + context.shape[0]]
    for i in range(context.shape[0]):
        context[i] += weight * value[i]


@njit(fastmath={"reassoc", "contract"}, error_model="numpy")
def _weigh(scores, n, scale, context):
    """Turn a tile's scores into weights; what was summed before shrinks with a larger score."""
    largest, total = scores[TILE], scores[TILE + 1]
    new = largest
    for s in range(n):
        scores[s] *= scale
        new = max(new, scores[s])
    if new > largest:
        shrink = exp_f32(largest - new)
        total *= shrink
        for i in range(context.shape[0]):
            context[i] *= shrink
    for s in range(n):
        scores[s] = exp_f32(scores[s] - new)
        total += scores[s]
    scores[TILE], scores[TILE + 1] = new, total


@njit(error_model="numpy")
def _fetch_four(rows, first, column, width):
    """Ask for four rows' `width` columns: no processor foresees a head's steps through the rows."""
    for s in range(first, min(first + 4, rows.shape[0])):
        start = rows.ctypes.data + 4 * (s * rows.shape[1] + column)
        for line in range(0, 4 * width, 64):
            prefetch(start + line)


@njit(error_model="numpy")
def attend(queries, rows, key, value, scale, scores, context):
    """Softmax attention of queries [heads, k] over rows [S, width] -> context [heads, v].

    Keys are the `k` columns from `key` on, values the `v` columns from `value` on. scores: memory
    [heads, SCORES]. All float32.
    """
    heads, n_keys = queries.shape[0], rows.shape[0]
    for h in range(heads):
        scores[h, TILE], scores[h, TILE + 1] = -np.inf, 0.0
        for i in range(context.shape[1]):
            context[h, i] = 0.0
    for start in range(0, n_keys, TILE):
        n = min(TILE, n_keys - start)
        fours = n // 4 * 4
        for s in range(0, fours, 4):
            _fetch_four(rows, start + s + AHEAD, key, queries.shape[1])
            for h in range(heads):
                _score_four(queries[h], rows, start + s, key, scores[h], s)
        for s in range(fours, n):
            for h in range(heads):
                scores[h, s] = _score(queries[h], rows[start + s], key)
        for h in range(heads):
            _weigh(scores[h], n, scale, context[h])
        for s in range(0, fours, 4):
            _fetch_four(rows, start + s + AHEAD, value, context.shape[1])
            for h in range(heads):
                _add_four(scores[h], s, rows, start + s, value, context[h])
        for s in range(fours, n):
            for h in range(heads):
                _add(scores[h, s], rows[start + s], value, context[h])
    for h in range(heads):
        for i in range(context.shape[1]):
            context[h, i] /= scores[h, TILE + 1]
