"""Attention of one token's queries over the rows of a cache, in float32, a tile of keys at a time.

Keys and values lie in the same rows, at columns of their own: the values may be a part of the key
(latent attention). Heads that share keys are done together, so that a key is fetched once for all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from cpu_experts.activate import exp_f32
from cpu_experts.memory import floats

TILE = 64  # keys between two looks at the largest score
AHEAD = 16  # keys between the one that is asked for and the one that is used
SCORES = TILE + 2  # float32 of memory for a head: a tile's scores, the largest, the sum of weights


@njit(fastmath={"reassoc", "contract"}, error_model="numpy")
def _score_four(query, keys, step, last, scores):
    """Scores of four keys, `step` float32 apart; of no key behind number `last`, but of that again.

    query, keys: one after the other; scores [4].
    """
    n = query.shape[0]
    first, second, third = 0, min(1, last) * step, min(2, last) * step
    fourth = min(3, last) * step
    a = b = c = d = np.float32(0.0)
    for i in range(n):
        a += query[i] * keys[first + i]
        b += query[i] * keys[second + i]
        c += query[i] * keys[third + i]
        d += query[i] * keys[fourth + i]
    scores[0], scores[1], scores[2], scores[3] = a, b, c, d


@njit(fastmath={"contract"}, error_model="numpy")
def _add_four(weights, values, step, last, context):
    """context += weights[:4] @ values, four rows `step` float32 apart, as in _score_four."""
    first, second, third = 0, min(1, last) * step, min(2, last) * step
    fourth = min(3, last) * step
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    for i in range(context.shape[0]):
        pair = a * values[first + i] + b * values[second + i]
        context[i] += pair + (c * values[third + i] + d * values[fourth + i])


@njit(fastmath={"reassoc", "contract"}, error_model="numpy")
def _weigh(scores, n, scale, context):
    """Turn a tile's scores into weights, 0 behind the n that count; what was summed before shrinks
    with a larger score.
    """
    largest, total = scores[TILE], scores[TILE + 1]
    new = largest
    for s in range(n):
        scores[s] *= scale
        new = max(new, scores[s])
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


@njit(error_model="numpy")
def attend(queries, heads, d_key, cache, n_keys, width, value, d_value, scale, scores, context):
    """Softmax attention of `heads` queries of d_key values over n_keys rows of a cache.

    All are addresses of float32, one after the other: rows of the cache `width` apart, whose keys
    begin at `cache` and whose values `value` columns on. Writes context [heads, d_value]; scores is
    memory for [heads, SCORES].
    """
    for h in range(heads):
        state = floats(scores + 4 * h * SCORES, SCORES)
        state[TILE], state[TILE + 1] = -np.inf, 0.0
        out = floats(context + 4 * h * d_value, d_value)
        for i in range(d_value):
            out[i] = 0.0
    for start in range(0, n_keys, TILE):
        n = min(TILE, n_keys - start)
        for s in range(0, n, 4):
            keys = floats(cache + 4 * (start + s) * width, 4 * width)
            for h in range(heads):
                query = floats(queries + 4 * h * d_key, d_key)
                four = floats(scores + 4 * (h * SCORES + s), 4)
                _score_four(query, keys, width, n - 1 - s, four)
        for h in range(heads):
            state = floats(scores + 4 * h * SCORES, SCORES)
            _weigh(state, n, scale, floats(context + 4 * h * d_value, d_value))
        for s in range(0, n, 4):
            values = floats(cache + 4 * ((start + s) * width + value), 4 * width)
            for h in range(heads):
                four = floats(scores + 4 * (h * SCORES + s), 4)
                out = floats(context + 4 * h * d_value, d_value)
                _add_four(four, values, width, n - 1 - s, out)
    for h in range(heads):
        total = floats(scores + 4 * h * SCORES, SCORES)[TILE + 1]
        out = floats(context + 4 * h * d_value, d_value)
        for i in range(d_value):
            out[i] /= total
