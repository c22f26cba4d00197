"""Which compiled kernel serves a format in the tier in use.

A format module offers `dequant` and `rows`, and, per faster tier, `rows_<tier>` (few tokens) and
`tiles_<tier>` (many). What a tier lacks falls back to `rows`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from numba import types

from cpu_experts.cache import c_function
from cpu_experts.formats import QuantFormat

KERNEL = types.void(*[types.int64] * 11)
DEQUANT, ROWS, TILES = "dequant", "rows", "tiles"


@cache
def kernel_name(weights: QuantFormat, role: str, tier: str) -> str:
    """The name, in the format's module, of the function that plays a role in a tier."""
    names = vars(import_module(weights.module))
    if role == DEQUANT:
        return DEQUANT
    wanted = [f"{role}_{tier}", f"{ROWS}_{tier}", ROWS]
    return next(name for name in wanted if name in names)


@cache
def kernel_address(weights: QuantFormat, role: str, tier: str) -> int:
    """The address of the compiled kernel; the first call compiles it or loads it from the cache."""
    function = getattr(import_module(weights.module), kernel_name(weights, role, tier))
    return c_function(function, KERNEL)
