"""A group of a chunk's weights as float32: for products on the tensor cores, and as an oracle."""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.bits import SUBNORMAL, as_float


@triton.jit
def dequantised(
    parts, c, GROUP: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr,
    N_SCALES: tl.constexpr, OFFSET: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """[n, m, 16] of the parts of chunks c [n, m]; exact.

    An integer is a float32's lower end, a subnormal number: no instruction converts it.
    """
    code = CODES(parts, c, GROUP, False)
    scales = SCALES(parts, c, GROUP)
    if OFFSET is None:
        weights = code * UP
        if N_SCALES > 0:
            weights *= tl.expand_dims(scales[0], -1)
    else:
        weights = as_float(code) * UP * tl.expand_dims(scales[0] * SUBNORMAL, -1)
        if N_SCALES > 1:
            weights += tl.expand_dims(scales[1], -1)
        else:
            weights += tl.expand_dims(scales[0] * -OFFSET, -1)
    return weights
