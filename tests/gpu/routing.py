"""The CPU's choice of experts for one token as a call from Python: what the router's is held to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from cpu_experts.cache import entry
from cpu_experts.routing import choose_experts

_ROW = types.Array(types.float32, 1, "C")
_FLOATS = types.Array(types.float32, 2, "C")
_IDS = types.Array(types.int32, 2, "C")
_ROUTE = types.void(_ROW, _ROW, *[types.int64] * 5, types.float64, _IDS, _FLOATS)


def _route_token(logits, bias, sigmoid, n_group, topk_group, counted, norm, scale, ids, weights):
    """See cpu_experts/routing.py; ids and weights [1, k] are written."""
    scores, choice = np.empty(len(logits), np.float32), np.empty(len(logits), np.float32)
    strength = np.empty(n_group, np.float32)
    choose_experts(
        logits, bias, sigmoid, topk_group, counted, norm, scale, ids[0], weights[0],
        scores, choice, strength,
    )  # fmt: skip


@cache
def route_token() -> Callable[..., None]:
    """`_route_token`, compiled or loaded once."""
    return entry(_route_token, _ROUTE)
