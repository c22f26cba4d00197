"""Quantised weights as bf16 tiles for AMX (amx.py), 16 rows at a time.

Of the same panels as the tiles of int8 (kernels/tiles.py), which a format's `fill_panel` makes: 64
vectors of one quad of every row, then scales and minima in one of the forms that `Panels` names.
A tile is 32 columns: vector i holds values 2i and 2i + 1 of each of the 16 rows. Every weight is
its exact float32 value, rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import types

from cpu_experts.amx import SUPER_BYTES, to_pairs
from cpu_experts.cache import c_function, inner
from cpu_experts.kernels import (
    iq4_nl,
    iq4_xs,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
)  # fmt: skip
from cpu_experts.kernels.tile_code import PANEL_FACTORS, PANEL_MINIMA, PANEL_SCALES
from cpu_experts.memory import I32
from cpu_experts.simd import INTS, constant, operation
from cpu_experts.vectors import (
    fma,
    load,
    load_floats,
    mask_lanes,
    multiply,
    shift_right32,
    splat_float,
    store,
    to_floats,
    zero_floats,
)

FILL = types.void(*[types.int64] * 4)
_FLOAT_MINIMA, _PAIRS = 1, 2  # float32, or pairs of int16 with a factor; 0: none

_BYTE = mask_lanes(255)
_BY8, _BY16, _BY24 = (shift_right32(count) for count in (8, 16, 24))
_UP16 = constant(I32, [16] * 16)
_low_word = operation(INTS, (INTS,), lambda b, x: b.ashr(b.shl(x, _UP16), _UP16))
_high_word = operation(INTS, (INTS,), lambda b, x: b.ashr(x, _UP16))


@inner
def _scale(panel, s, words):
    """The float32 scales of sub-block s of 16 rows."""
    if words:
        scale = to_floats(_low_word(load(panel + PANEL_SCALES + 64 * s)))
        return multiply(scale, load_floats(panel + PANEL_FACTORS))
    return load_floats(panel + PANEL_SCALES + 64 * s)


@inner
def _minimum(panel, s, minima):
    """What is taken off its weights, less the offset of the bytes."""
    if minima == _FLOAT_MINIMA:
        return load_floats(panel + PANEL_MINIMA + 64 * s)
    if minima == _PAIRS:
        pair = load(panel + PANEL_MINIMA + 64 * (s // 2))
        word = _high_word(pair) if s % 2 else _low_word(pair)
        return multiply(to_floats(word), load_floats(panel + PANEL_FACTORS + 64))
    return zero_floats()


@inner
def _widen(panel, sub, offset, words, minima, target):
    """A panel as 8 tiles: byte * scale - (minimum + offset * scale)."""
    less, minus = splat_float(np.float32(-offset)), splat_float(np.float32(-1.0))
    for part in range(16):  # of 16 columns
        scale = _scale(panel, 16 * part // sub, words)
        minimum = multiply(_minimum(panel, 16 * part // sub, minima), minus)
        start = fma(scale, less, minimum)
        for quad in range(4 * part, 4 * part + 4):
            four = load(panel + 64 * quad)
            a = fma(to_floats(_BYTE(four)), scale, start)
            b = fma(to_floats(_BYTE(_BY8(four))), scale, start)
            c = fma(to_floats(_BYTE(_BY16(four))), scale, start)
            d = fma(to_floats(_BY24(four)), scale, start)
            store(to_pairs(a, b), target + 128 * quad)
            store(to_pairs(c, d), target + 128 * quad + 64)


@inner
def _fill(fill_panel, n_bytes, sub, offset, words, minima, block, stride, n, target):
    """n superblocks, of n_bytes each, of 16 rows; their panels lie behind the tiles meanwhile."""
    panel = target + n * SUPER_BYTES
    for i in range(n):
        fill_panel(block + i * n_bytes, stride, panel)
        _widen(panel, sub, offset, words, minima, target + i * SUPER_BYTES)


# A function for each format: (sub-block, offset of the bytes, integer scales, kind of minima).


def _q4_0(block, stride, n, target):
    _fill(q4_0.fill_panel, 144, 32, 8, False, 0, block, stride, n, target)


def _q4_1(block, stride, n, target):
    _fill(q4_1.fill_panel, 160, 32, 0, False, _FLOAT_MINIMA, block, stride, n, target)


def _q5_0(block, stride, n, target):
    _fill(q5_0.fill_panel, 176, 32, 16, False, 0, block, stride, n, target)


def _q5_1(block, stride, n, target):
    _fill(q5_1.fill_panel, 192, 32, 0, False, _FLOAT_MINIMA, block, stride, n, target)


def _q8_0(block, stride, n, target):
    _fill(q8_0.fill_panel, 272, 32, 128, False, 0, block, stride, n, target)


def _iq4_nl(block, stride, n, target):
    _fill(iq4_nl.fill_panel, 144, 32, 128, False, 0, block, stride, n, target)


def _q2_k(block, stride, n, target):
    _fill(q2_k.fill_panel, 84, 16, 0, True, _PAIRS, block, stride, n, target)


def _q3_k(block, stride, n, target):
    _fill(q3_k.fill_panel, 110, 16, 4, True, 0, block, stride, n, target)


def _q4_k(block, stride, n, target):
    _fill(q4_k.fill_panel, 144, 32, 8, True, _FLOAT_MINIMA, block, stride, n, target)


def _q5_k(block, stride, n, target):
    _fill(q5_k.fill_panel, 176, 32, 0, False, _PAIRS, block, stride, n, target)


def _q6_k(block, stride, n, target):
    _fill(q6_k.fill_panel, 210, 16, 32, False, 0, block, stride, n, target)


def _iq4_xs(block, stride, n, target):
    _fill(iq4_xs.fill_panel, 136, 32, 128, False, 0, block, stride, n, target)


_FILL: dict[str, Callable[..., None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}


def filling(name: str) -> int:
    """The address of a format's function (block, stride, n, target), compiled or loaded.

    It writes n superblocks of 16 rows at `target`, and uses PANEL_BYTES of memory behind them.
    """
    return c_function(_FILL[name], FILL)
