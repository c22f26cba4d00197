"""Weights times the activations of many tokens: dequantise a tile, multiply on the tensor cores.

bf16 times bf16 into float32; weights of the F32 format stay float32 and are multiplied as three
tf32 products, which is float32's precision but for its last bits. The weights' tile is the left
factor: it goes from registers to the tensor cores, only activations pass through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu.dequantise import dequantised


@triton.jit
def matmul_kernel(
    x, data, scales, groups, add, out, n_blocks, n_tokens, rows, cols,
    x_token, x_matrix, out_token, out_matrix,
    LOAD: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr,
    SPAN: tl.constexpr, CHUNKS: tl.constexpr, UP: tl.constexpr, PRECISE: tl.constexpr,
    FLOAT_DOT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ROWS rows of matrix `program_id(2)`, TOKENS tokens; WIDTH chunks of each row at a time.

    With `groups` int32 [n, 3], tokens `groups[i, 1]` to `groups[i, 2]` meet matrix `groups[i, 0]`,
    at most TOKENS of them, where i is `program_id(0)`. Strides of x are in units of 8 values.
    FLOAT_DOT is for Triton's interpreter, which multiplies no bf16: the same values, rounded to
    bf16, are multiplied as float32.
    """
    token = tl.arange(0, TOKENS)
    first_row = tl.program_id(1) * ROWS
    matrix = tl.program_id(2).to(tl.int64)
    blocks = cols // (16 * GROUPS * CHUNKS)
    n_chunks = blocks * CHUNKS
    chosen = matrix
    if groups is None:
        token += tl.program_id(0) * TOKENS
    else:
        groups += tl.program_id(0) * 3
        chosen = tl.load(groups).to(tl.int64)
        token += tl.load(groups + 1)
        n_tokens = tl.load(groups + 2)
    if scales is not None:
        scales += chosen * (tl.cdiv(rows, 128) * tl.cdiv(cols, 128))
    kind = tl.float32 if PRECISE else tl.bfloat16
    row = tl.minimum(first_row + tl.expand_dims(tl.arange(0, ROWS), 1), rows - 1)
    first = (chosen * rows + row) * blocks
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 16), 0), 0)
    value = tl.arange(0, WIDTH * 16)
    x += matrix * (x_matrix * 8)
    x_row = x + tl.expand_dims(tl.minimum(token, n_tokens - 1).to(tl.int64) * (x_token * 8), 0)
    sums = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, n_chunks, WIDTH):
        c = tl.minimum(start + tl.expand_dims(tl.arange(0, WIDTH), 0), n_chunks - 1)
        parts = LOAD(data, scales, n_blocks.to(tl.int64), first, row, c, lane, cols, False)
        own = start + value // 16
        k = tl.expand_dims(own // HALVES * SPAN + own % HALVES * 16 + value % 16, 1)
        inside = tl.expand_dims(own < n_chunks, 1)
        for group in tl.static_range(GROUPS):
            weights = dequantised(parts, c, group, CODES, SCALES, N_SCALES, OFFSET, UP)
            weights = tl.reshape(weights.to(kind), [ROWS, WIDTH * 16])
            values = tl.load(x_row + k + group * GROUP_STEP, mask=inside, other=0.0).to(kind)
            if FLOAT_DOT:
                sums += tl.dot(weights.to(tl.float32), values.to(tl.float32))
            elif PRECISE:
                sums = tl.dot(weights, values, sums, input_precision="tf32x3")
            else:
                sums = tl.dot(weights, values, sums)
    row = first_row + tl.expand_dims(tl.arange(0, ROWS), 1)
    place = tl.expand_dims(token.to(tl.int64) * out_token, 0) + matrix * out_matrix + row
    inside = (row < rows) & tl.expand_dims(token < n_tokens, 0)
    if add is not None:
        sums += tl.load(add + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)
