"""SwiGLU on float32 at addresses, h = g / (1 + exp(-g)) * u, in a form that LLVM vectorises."""

from __future__ import annotations

import numpy as np

from cpu_experts.cache import inner
from cpu_experts.memory import bits_to_f32, floats

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


@inner(fastmath={"contract", "nsz"})
def exp_f32(x):
    """e**x within 2 units in the last place; e**88 above 88. Below -44 it is 0, which in a sum with
    1 makes no difference: products with less would be subnormal numbers, a hundred times as slow.
    """
    x = min(max(x, np.float32(-44.0)), np.float32(88.0))
    n = np.rint(x * _LOG2E)
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    # A polynomial for (e**r - 1 - r) / r**2 on [-ln2/2, ln2/2] (Cephes).
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = p * bits_to_f32((np.int32(n) + np.int32(127)) << 23)
    return power if x > np.float32(-44.0) else np.float32(0.0)


@inner
def swiglu(gate, up, n):
    """silu(gate) * up over n float32, into `gate`."""
    gates, ups = floats(gate, n), floats(up, n)
    for i in range(n):
        g = gates[i]
        gates[i] = g / (np.float32(1.0) + exp_f32(-g)) * ups[i]
