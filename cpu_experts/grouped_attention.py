"""Grouped-query attention (arXiv 2305.13245) of one token, as steps of a program.

A token leaves [keys of every key head | values of every key head] in the cache, keys normed where
the model does so, and rotated. Steps are functions of a job's address (program.py), whose int64
fields are named above each.
"""

from __future__ import annotations

import numpy as np

from cpu_experts.attend import SCORES, attend
from cpu_experts.cache import inner
from cpu_experts.memory import floats, load_f64, load_i64
from cpu_experts.program_steps import rms_norm

# Of `rotate_heads`: Q_NORM and K_NORM are 0 where the architecture has none; EPS is a float64;
# TURNS [context, d / 2, 2] of pairs that lie side by side if INTERLEAVED; ROWS is a layer's cache.
(
    _Q,
    _K,
    _V,
    _HEADS,
    _KEY_HEADS,
    _D,
    _Q_NORM,
    _K_NORM,
    _EPS,
    _TURNS,
    _INTERLEAVED,
    _POSITION,
    _ROWS,
) = range(13)


def rotate_heads(job, item, slot, scratch):
    """Norm and rotate queries where they are and keys into the token's row of the cache, with the
    values behind them.
    """
    d, key_heads = load_i64(job + 8 * _D), load_i64(job + 8 * _KEY_HEADS)
    position, width = load_i64(load_i64(job + 8 * _POSITION)), key_heads * d
    turns = floats(load_i64(job + 8 * _TURNS) + 4 * position * d, (d // 2, 2))
    row = load_i64(job + 8 * _ROWS) + 8 * position * width
    eps, interleaved = load_f64(job + 8 * _EPS), load_i64(job + 8 * _INTERLEAVED)
    gain, q = load_i64(job + 8 * _Q_NORM), load_i64(job + 8 * _Q)
    for head in range(load_i64(job + 8 * _HEADS)):
        query = q + 4 * head * d
        _turn_head(query, gain, eps, turns, interleaved, query)
    gain, k = load_i64(job + 8 * _K_NORM), load_i64(job + 8 * _K)
    for head in range(key_heads):
        _turn_head(k + 4 * head * d, gain, eps, turns, interleaved, row + 4 * head * d)
    values, out = floats(load_i64(job + 8 * _V), width), floats(row + 4 * width, width)
    for i in range(width):
        out[i] = values[i]


@inner
def _turn_head(source, gain, eps, turns, interleaved, target):
    """One head, normed if it has a gain, and rotated: d float32 from source to target."""
    pairs = turns.shape[0]
    x, out = floats(source, 2 * pairs), floats(target, 2 * pairs)
    if gain != 0:
        rms_norm(x, floats(gain, 2 * pairs), eps, x)
    step, apart = (2, 1) if interleaved else (1, pairs)
    for i in range(pairs):
        a, b = x[step * i], x[step * i + apart]
        out[step * i] = a * turns[i, 0] - b * turns[i, 1]
        out[step * i + apart] = b * turns[i, 0] + a * turns[i, 1]


# Of `attend_heads`: SHARE heads are an item, all of one key head; SCALE is a float64.
_SHARE, _GROUP, _QUERIES, _N_KEY_HEADS, _WIDTH, _PLACE, _CACHE, _SCALE, _OUT = range(9)


def attend_heads(job, item, slot, scratch):
    """Some heads of one key head over the cache."""
    share, group = load_i64(job + 8 * _SHARE), load_i64(job + 8 * _GROUP)
    d, key_heads = load_i64(job + 8 * _WIDTH), load_i64(job + 8 * _N_KEY_HEADS)
    items_of_key = (group + share - 1) // share
    key, first = item // items_of_key, item % items_of_key * share
    heads, head = min(share, group - first), key * group + first
    n_keys = load_i64(load_i64(job + 8 * _PLACE)) + 1
    attend(
        floats(load_i64(job + 8 * _QUERIES) + 4 * head * d, (heads, d)),
        floats(load_i64(job + 8 * _CACHE), (n_keys, 2 * key_heads * d)),
        key * d,
        (key_heads + key) * d,
        np.float32(load_f64(job + 8 * _SCALE)),
        floats(scratch, (heads, SCORES)),
        floats(load_i64(job + 8 * _OUT) + 4 * head * d, (heads, d)),
    )
