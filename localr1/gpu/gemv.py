"""Weights that are no integers times the activations of a few tokens, straight from their blocks.

A thread takes chunks of 16 bytes (formats.py), keeps the activations that they meet in registers
and uses them for several rows; sums are float32. Nothing is staged in shared memory.
integer_gemv.py has the other formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu import pdl


@triton.jit
def gemv_kernel(
    x, data, scales, ids, add, out, n_blocks, n_tokens, rows, cols,
    x_token, x_matrix, out_token, out_matrix,
    LOAD: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr,
    SPAN: tl.constexpr, CHUNKS: tl.constexpr, UP: tl.constexpr, TOKENS: tl.constexpr,
    GATED: tl.constexpr, REPEAT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    UNROLL: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Matrix `program_id(1)` of a stack, `REPEAT * ROWS` of its rows, up to TOKENS tokens.

    With `ids`, that is only the place in x and out; the matrix is the one that `ids` has there.

    Strides of x are in units of 8 values, so that the compiler knows them aligned.
    GATED: matrices 0 and 1 of the stack are gate and up, and out is silu(gate . x) * (up . x).
    A tile is ROWS x WIDTH chunks; each of its rows meets REPEAT rows of the matrix in turn.
    """
    pdl.start(PDL)
    N: tl.constexpr = 2 * REPEAT if GATED else REPEAT
    matrix = tl.program_id(1).to(tl.int64)
    first_row = tl.program_id(0) * (REPEAT * ROWS)
    blocks = cols // (16 * GROUPS * CHUNKS)
    n_chunks = blocks * CHUNKS
    tiles = tl.cdiv(rows, 128) * tl.cdiv(cols, 128)
    x += matrix * (x_matrix * 8)
    chosen = matrix if ids is None else tl.load(ids + matrix).to(tl.int64)
    n_blocks = n_blocks.to(tl.int64)
    down = tl.expand_dims(tl.arange(0, ROWS), 1)
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 16), 0), 0)
    sums = ()
    for _ in tl.static_range(N * TOKENS):
        sums = sums + (tl.zeros([ROWS, WIDTH], tl.float32),)
    for start in tl.range(0, n_chunks, WIDTH, loop_unroll_factor=UNROLL):
        c = start + tl.expand_dims(tl.arange(0, WIDTH), 0) + tl.zeros([ROWS, 1], tl.int32)
        inside = tl.expand_dims(c < n_chunks, -1)
        c = tl.minimum(c, n_chunks - 1)
        parts = ()
        for i in tl.static_range(N):
            row = tl.minimum(first_row + i % REPEAT * ROWS + down, rows - 1)
            source = chosen + i // REPEAT
            first = (source * rows + row) * blocks
            own = scales if scales is None else scales + source * tiles
            parts = parts + (LOAD(data, own, n_blocks, first, row, c, lane, cols, False),)
        k = tl.expand_dims(c // HALVES * SPAN + c % HALVES * 16, -1) + lane
        for group in tl.static_range(GROUPS):
            new = ()
            for t in tl.static_range(TOKENS):
                token = tl.minimum(t, n_tokens - 1) * (x_token * 8)
                values = tl.load(x + token + k + group * GROUP_STEP, mask=inside, other=0.0)
                values = values.to(tl.float32) * UP
                for i in tl.static_range(N):
                    product = tl.sum(CODES(parts[i], c, group, False) * values, 2)
                    if N_SCALES > 0:
                        product *= SCALES(parts[i], c, group)[0]
                    new = new + (sums[t * N + i] + product,)
            sums = new
    store(
        sums, add, out, matrix * out_matrix, first_row, n_tokens, rows,
        out_token, TOKENS, GATED, REPEAT, ROWS,
    )  # fmt: skip


@triton.jit
def store(
    sums, add, out, matrix, first_row, n_tokens, rows, out_token,
    TOKENS: tl.constexpr, GATED: tl.constexpr, REPEAT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum over the tiles' chunks; SwiGLU; the addend; out."""
    N: tl.constexpr = 2 * REPEAT if GATED else REPEAT
    for t in tl.static_range(TOKENS):
        for i in tl.static_range(REPEAT):
            row = first_row + i * ROWS + tl.arange(0, ROWS)
            result = tl.sum(sums[t * N + i], 1)
            if GATED:
                result = result * tl.sigmoid(result) * tl.sum(sums[t * N + REPEAT + i], 1)
            place = matrix + t * out_token + row
            inside = row < tl.where(t < n_tokens, rows, 0)
            if add is not None:
                result += tl.load(add + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
