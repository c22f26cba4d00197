"""Weights as plain numbers: for the few that are used the other way round, and as an oracle."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expand_kernel(
    data, scales, out, n_blocks, rows, cols,
    LOAD: tl.constexpr, DEQUANTISE: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr,
    HALVES: tl.constexpr, SPAN: tl.constexpr, CHUNKS: tl.constexpr, TERMS: tl.constexpr,
    UP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out[row, :], for row `program_id(0)` of matrix `program_id(1)`; out is contiguous."""
    row = tl.program_id(0)
    matrix = tl.program_id(1).to(tl.int64)
    blocks = cols // (16 * GROUPS * CHUNKS)
    n_chunks = blocks * CHUNKS
    if scales is not None:
        scales += matrix * (tl.cdiv(rows, 128) * tl.cdiv(cols, 128))
    lane = tl.expand_dims(tl.arange(0, 16), 0)
    first = matrix * rows + row
    for start in range(0, n_chunks, WIDTH):
        c = start + tl.arange(0, WIDTH)
        inside = tl.expand_dims(c < n_chunks, 1)
        c = tl.minimum(c, n_chunks - 1)
        block = first * blocks + c // CHUNKS
        parts = LOAD(data, scales, n_blocks.to(tl.int64), block, row, c, lane, cols)
        k = tl.expand_dims(c // HALVES * SPAN + c % HALVES * 16, 1) + lane
        for group in tl.static_range(GROUPS):
            terms = DEQUANTISE(parts, c, group)
            weights = terms[0] * UP
            if TERMS > 1:
                weights *= tl.expand_dims(terms[1], -1)
            if TERMS > 2:
                weights += tl.expand_dims(terms[2], -1)
            place = out + first * cols + k + group * GROUP_STEP
            tl.store(place, weights.to(out.dtype.element_ty), mask=inside)
