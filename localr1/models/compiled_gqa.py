"""The small steps of grouped-query attention for one token, each compiled into one call.

As compiled.py for latent attention: gqa.py says in torch what these do, and the tests compare the
two. Arguments are plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types

from cpu_experts.cache import entry

_ROW = types.Array(types.float32, 1, "C")
_FLOATS = types.Array(types.float32, 2, "C")
_ROTATE = types.void(*[_FLOATS] * 3, *[_ROW] * 5, types.float64, _FLOATS, types.boolean, _ROW)
_ATTEND = types.void(_FLOATS, _FLOATS, *[types.int64] * 2, types.float64, _ROW, _FLOATS)


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _prepare(values, bias, norm, eps, turns, interleaved, out):
    """One head's query or key: bias, RMSNorm and rotation, where it has them; `out` may be it."""
    n, pairs = values.shape[0], turns.shape[0]
    for i in range(bias.shape[0]):
        values[i] += bias[i]
    if norm.shape[0]:
        total = np.float32(0.0)
        for i in range(n):
            total += values[i] * values[i]
        factor = np.float32(1.0 / np.sqrt(total / n + eps))
        for i in range(n):
            values[i] = values[i] * factor * norm[i]
    for i in range(pairs):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, pairs + i)
        cosine, sine = turns[i, 0], turns[i, 1]
        a, b = values[first], values[second]
        out[first] = a * cosine - b * sine
        out[second] = b * cosine + a * sine


def _rotate_heads(q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm, eps, turns, interleaved, row):
    """One token's projections q [1, heads * d], k and v [1, key heads * d], ready to attend.

    Biases [heads * d] and norms [d] are empty where there are none; turns [d / 2, 2] (cosine,
    sine), of pairs that lie side by side if `interleaved`. Rewrites q, and writes the cache row
    [keys | values].
    """
    d, width = 2 * turns.shape[0], k.shape[1]
    for start in range(0, q.shape[1], d):
        head = q[0, start : start + d]
        _prepare(head, q_bias[start : start + d], q_norm, eps, turns, interleaved, head)
    for start in range(0, width, d):
        bias, out = k_bias[start : start + d], row[start : start + d]
        _prepare(k[0, start : start + d], bias, k_norm, eps, turns, interleaved, out)
    for i in range(width):
        row[width + i] = v[0, i]
    for i in range(v_bias.shape[0]):
        row[width + i] += v_bias[i]


def _attend_token(q, rows, n_heads, n_kv_heads, scale, scores, out):
    """Softmax attention of one token: q [1, heads * d] over rows [S, 2 * key heads * d] -> out.

    `scores` is memory for at least S values.
    """
    n, d, group = rows.shape[0], q.shape[1] // n_heads, n_heads // n_kv_heads
    factor = np.float32(scale)
    for h in range(n_heads):
        first = h * d
        key = h // group * d
        value = n_kv_heads * d + key
        largest = np.float32(-np.inf)
        for s in range(n):
            total = np.float32(0.0)
            for i in range(d):
                total += q[0, first + i] * rows[s, key + i]
            scores[s] = total * factor
            largest = max(largest, scores[s])
        weight_sum = np.float32(0.0)
        for s in range(n):
            scores[s] = np.exp(scores[s] - largest)
            weight_sum += scores[s]
        for i in range(d):
            out[0, first + i] = 0.0
        for s in range(n):
            weight = scores[s] / weight_sum
            for i in range(d):
                out[0, first + i] += weight * rows[s, value + i]


@cache
def rotate_heads() -> Callable[..., None]:
    """`_rotate_heads`, compiled or loaded once."""
    return entry(_rotate_heads, _ROTATE, reorder=True)


@cache
def attend_token() -> Callable[..., None]:
    """`_attend_token`, compiled or loaded once."""
    return entry(_attend_token, _ATTEND, reorder=True)


STEPS: tuple[Callable[[], Any], ...] = (rotate_heads, attend_token)
