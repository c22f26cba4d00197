"""Attention of one token's queries over the rows of a cache, in float32, a tile of keys at a time.

Keys and values lie in the same rows, at columns of their own: the values may be a part of the key
(latent attention). Heads that share keys are done together, so that a key is fetched once for all.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.activate import exp_f32
from cpu_experts.cache import inner
from cpu_experts.memory import prefetch

TILE = 64  # keys between two looks at the largest score
AHEAD = 16  # keys between the one that is asked for and the one that is used
SCORES = TILE + 2  # float32 of memory for a head: a tile's scores, the largest, the sum of weights


@inner(fastmath={"reassoc", "contract"})
def _score_four(query, rows, first, column, scores, at):
    """Scores of four keys: rows[first : first + 4, column :] @ query; of no row behind the last,
    but of the last again.
    """
    last = rows.shape[0] - 1
    second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    a = b = c = d = np.float32(0.0)
    for i in range(query.shape[0]):
        a += query[i] * rows[first, column + i]
        b += query[i] * rows[second, column + i]
        c += query[i] * rows[third, column + i]
        d += query[i] * rows[fourth, column + i]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = a, b, c, d


@inner(fastmath={"contract"})
def _add_four(weights, at, rows, first, column, context):
    """context += weights[at : at + 4] @ rows[first : first + 4, column :], as in _score_four."""
    last = rows.shape[0] - 1
    second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    a, b, c, d = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
    for i in range(context.shape[0]):
        pair = a * rows[first, column + i] + b * rows[second, column + i]
        context[i] += pair + (c * rows[third, column + i] + d * rows[fourth, column + i])


@inner(fastmath={"reassoc", "contract"})
def _weigh(scores, n, scale, context):
    """Turn a tile's scores into weights, 0 behind the n that count; what was summed before shrinks
    with a larger score.
    """
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
    for s in range(n, TILE):
        scores[s] = 0.0
    scores[TILE], scores[TILE + 1] = new, total


@inner
def _fetch_four(rows, first, column, width):
    """Ask for four rows' `width` columns: no processor foresees a head's steps through the rows."""
    for s in range(first, min(first + 4, rows.shape[0])):
        start = rows.ctypes.data + 4 * (s * rows.shape[1] + column)
        for line in range(0, 4 * width, 64):
            prefetch(start + line)


@inner(inline="always")
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
        for s in range(0, n, 4):
            _fetch_four(rows, start + s + AHEAD, key, queries.shape[1])
            for h in range(heads):
                _score_four(queries[h], rows, start + s, key, scores[h], s)
        for h in range(heads):
            _weigh(scores[h], n, scale, context[h])
        for s in range(0, n, 4):
            _fetch_four(rows, start + s + AHEAD, value, context.shape[1])
            for h in range(heads):
                _add_four(scores[h], s, rows, start + s, value, context[h])
    for h in range(heads):
        for i in range(context.shape[1]):
            context[h, i] /= scores[h, TILE + 1]
