"""Weights as plain numbers: for the few that are used the other way round, and as an oracle."""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.dequantise import dequantised


@triton.jit
def expand_kernel(
    data, scales, out, n_blocks, rows, cols,
    LOAD: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr,
    SPAN: tl.constexpr, CHUNKS: tl.constexpr, UP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out[row, :], for row `program_id(0)` of matrix `program_id(1)`; out is contiguous."""
    matrix = tl.program_id(1).to(tl.int64)
    blocks = cols // (16 * GROUPS * CHUNKS)
    n_chunks = blocks * CHUNKS
    if scales is not None:
        scales += matrix * (tl.cdiv(rows, 128) * tl.cdiv(cols, 128))
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 16), 0), 0)
    row = matrix * rows + tl.full([1, 1], 0, tl.int64) + tl.program_id(0)
    first = row * blocks
    for start in range(0, n_chunks, WIDTH):
        c = start + tl.expand_dims(tl.arange(0, WIDTH), 0)
        inside = tl.expand_dims(c < n_chunks, -1)
        c = tl.minimum(c, n_chunks - 1)
        own = tl.program_id(0)
        parts = LOAD(data, scales, n_blocks.to(tl.int64), first, own, c, lane, cols, False)
        k = tl.expand_dims(c // HALVES * SPAN + c % HALVES * 16, -1) + lane
        for group in tl.static_range(GROUPS):
            weights = dequantised(parts, c, group, CODES, SCALES, N_SCALES, OFFSET, UP)
            place = out + tl.expand_dims(row, -1) * cols + k + group * GROUP_STEP
            tl.store(place, weights.to(out.dtype.element_ty), mask=inside)
