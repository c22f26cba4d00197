"""The router of DeepSeek's models: which experts a token takes, and with which weights.

V3: sigmoid scores; a bias, learned for balance, joins the choice but not the weights; a group
counts as its two best (arXiv 2412.19437, section 2.1.2). V2: softmax scores; a group counts as its
best one. Of equal experts the first is taken.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import inner
from cpu_experts.memory import floats, ints, load_f64, load_i64


@inner
def _best(values):
    """The index of the largest value, the first of equal ones."""
    best = 0
    for i in range(1, values.shape[0]):
        if values[i] > values[best]:
            best = i
    return best


@inner
def _close_groups(choice, strength, topk_group, counted):
    """Set all groups but the `topk_group` strongest to -inf; 1 or 2 `counted` experts are a group's
    strength.
    """
    n_group = strength.shape[0]
    size = choice.shape[0] // n_group
    for g in range(n_group):
        first = second = np.float32(-np.inf)
        for i in range(g * size, (g + 1) * size):
            if choice[i] > first:
                first, second = choice[i], first
            elif choice[i] > second:
                second = choice[i]
        strength[g] = first + second if counted == 2 else first
    for _ in range(n_group - topk_group):
        weakest = 0
        for g in range(1, n_group):
            if strength[g] < strength[weakest]:
                weakest = g
        for i in range(weakest * size, (weakest + 1) * size):
            choice[i] = -np.inf
        strength[weakest] = np.inf


@inner(inline="always")
def choose_experts(
    logits, bias, sigmoid, topk_group, counted, norm, scale, ids, weights, scores, choice, strength
):
    """The choice for one token, from the router's logits. logits, bias float32 [experts].

    `counted` best experts stand for a group (0: no groups); writes ids int32 and weights float32
    [k]. Works in the float32 memory scores and choice [experts], and strength [groups].
    """
    n, k = logits.shape[0], ids.shape[0]
    total = np.float32(0.0)
    largest = logits[_best(logits)]
    for i in range(n):
        if sigmoid:
            scores[i] = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits[i]))
        else:
            scores[i] = np.exp(logits[i] - largest)
        total += scores[i]
    for i in range(n):
        if not sigmoid:
            scores[i] /= total
        choice[i] = scores[i] + bias[i]
    if counted:
        _close_groups(choice, strength, topk_group, counted)
    taken = np.float32(0.0)
    for j in range(k):
        best = _best(choice)
        choice[best] = -np.inf
        ids[j], weights[j] = best, scores[best]
        taken += scores[best]
    factor = scale / (taken + 1e-20) if norm else scale
    for j in range(k):
        weights[j] *= factor


# Of `route`, a program's step; SCALED is a float64.
(
    _LOGITS,
    _BIAS,
    _EXPERTS,
    _SIGMOID,
    _GROUPS,
    _TAKEN,
    _COUNTED,
    _NORMED,
    _SCALED,
    _CHOSEN,
    _IDS,
    _OUT,
) = range(12)


def route(job, item, slot, scratch):
    """The gate's choice, from the router's logits: int32 ids and float32 weights."""
    n, k = load_i64(job + 8 * _EXPERTS), load_i64(job + 8 * _CHOSEN)
    choose_experts(
        floats(load_i64(job + 8 * _LOGITS), n),
        floats(load_i64(job + 8 * _BIAS), n),
        load_i64(job + 8 * _SIGMOID),
        load_i64(job + 8 * _TAKEN),
        load_i64(job + 8 * _COUNTED),
        load_i64(job + 8 * _NORMED),
        load_f64(job + 8 * _SCALED),
        ints(load_i64(job + 8 * _IDS), k),
        floats(load_i64(job + 8 * _OUT), k),
        floats(scratch, n),
        floats(scratch + 4 * n, n),
        floats(scratch + 8 * n, load_i64(job + 8 * _GROUPS)),
    )
