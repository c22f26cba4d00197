"""The small steps between the matrix products of one token, each compiled into one call.

A decode step of a small model spends its time not in arithmetic but in the number of calls. These
do what `attention.py` and `gate.py` say in torch for any number of tokens, for one token: the
torch form is their definition, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from cpu_experts.cache import entry
from cpu_experts.routing import choose_experts

_ROW = types.Array(types.float32, 1, "C")
_FLOATS = types.Array(types.float32, 2, "C")
_IDS = types.Array(types.int32, 2, "C")
_ROTATE = types.void(*[_FLOATS] * 2, _FLOATS, _ROW, types.float64, _FLOATS, _FLOATS, _ROW)
_ATTEND = types.void(_FLOATS, _FLOATS, types.float64, _ROW, _FLOATS)
_NORM = types.void(_FLOATS, _FLOATS, _ROW, types.float64, _FLOATS)
_ROUTE = types.void(_ROW, _ROW, *[types.int64] * 5, types.float64, _IDS, _FLOATS)


def _rotate_token(q, kv, turns, norm, eps, q_nope, queries, row):
    """Split, norm and rotate one token's projections (MLA's steps before attention).

    q float32 [heads, nope + rope], kv [1, rank + rope], turns [rope / 2, 2] (cosine, sine), norm
    [rank]; writes q_nope [heads, nope], the last `rope` columns of queries [heads, rank + rope],
    and the cache row [rank + rope].
    """
    rank, pairs = norm.shape[0], turns.shape[0]
    nope = q_nope.shape[1]
    total = np.float32(0.0)
    for i in range(rank):
        total += kv[0, i] * kv[0, i]
    factor = np.float32(1.0 / np.sqrt(total / rank + eps))
    for i in range(rank):
        row[i] = kv[0, i] * factor * norm[i]
    for i in range(pairs):
        cosine, sine = turns[i, 0], turns[i, 1]
        a, b = kv[0, rank + 2 * i], kv[0, rank + 2 * i + 1]
        row[rank + 2 * i] = a * cosine - b * sine
        row[rank + 2 * i + 1] = b * cosine + a * sine
        for h in range(q.shape[0]):
            a, b = q[h, nope + 2 * i], q[h, nope + 2 * i + 1]
            queries[h, rank + 2 * i] = a * cosine - b * sine
            queries[h, rank + 2 * i + 1] = b * cosine + a * sine
    for h in range(q.shape[0]):
        for i in range(nope):
            q_nope[h, i] = q[h, i]


def _attend_token(queries, rows, scale, scores, context):
    """Softmax attention of queries [heads, width] over rows [S, width] -> context [heads, rank].

    `scores` is memory for at least S values.
    """
    n, width, rank = rows.shape[0], rows.shape[1], context.shape[1]
    factor = np.float32(scale)
    for h in range(queries.shape[0]):
        largest = np.float32(-np.inf)
        for s in range(n):
            total = np.float32(0.0)
            for i in range(width):
                total += queries[h, i] * rows[s, i]
            scores[s] = total * factor
            largest = max(largest, scores[s])
        weight_sum = np.float32(0.0)
        for s in range(n):
            scores[s] = np.exp(scores[s] - largest)
            weight_sum += scores[s]
        for i in range(rank):
            context[h, i] = 0.0
        for s in range(n):
            weight = scores[s] / weight_sum
            for i in range(rank):
                context[h, i] += weight * rows[s, i]


def _route_token(logits, bias, sigmoid, n_group, topk_group, counted, norm, scale, ids, weights):
    """The gate's choice for one token: see cpu_experts/routing.py."""
    memory, strength = np.empty((2, len(logits)), np.float32), np.empty(n_group, np.float32)
    choose_experts(
        logits, bias, sigmoid, topk_group, counted, norm, scale, ids, weights, memory, strength
    )


def _norm_token(x, add, weight, eps, out):
    """RMSNorm of one row: x [1, n], weight [n] -> out [1, n], float32.

    `add` [1, n] is summed into x first; [0, n]: there is nothing to add.
    """
    for t in range(add.shape[0]):
        for i in range(weight.shape[0]):
            x[0, i] += add[t, i]
    total = np.float32(0.0)
    for i in range(weight.shape[0]):
        total += x[0, i] * x[0, i]
    factor = np.float32(1.0 / np.sqrt(total / weight.shape[0] + eps))
    for i in range(weight.shape[0]):
        out[0, i] = x[0, i] * factor * weight[i]


@cache
def norm_token() -> Callable[..., None]:
    """`_norm_token`, compiled or loaded once."""
    return entry(_norm_token, _NORM, reorder=True)


@cache
def rotate_token() -> Callable[..., None]:
    """`_rotate_token`, compiled or loaded once."""
    return entry(_rotate_token, _ROTATE, reorder=True)


@cache
def attend_token() -> Callable[..., None]:
    """`_attend_token`, compiled or loaded once."""
    return entry(_attend_token, _ATTEND, reorder=True)


@cache
def route_token() -> Callable[..., None]:
    """`_route_token`, compiled or loaded once."""
    return entry(_route_token, _ROUTE)


STEPS: tuple[Callable[[], Any], ...] = (norm_token, rotate_token, attend_token, route_token)
