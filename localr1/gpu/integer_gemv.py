"""Weights that are integers times the activations of a few tokens, straight from their blocks.

Decoding reads every weight once for a handful of operations, so memory's bandwidth is the limit if
those are few enough: codes stay four to a word, meet int16 activations (activations.py) two to an
instruction, and scales and offsets follow once for 16. A thread takes chunks of 16 bytes
(formats.py), its neighbours the next ones, of one or more rows. gemv.py has the other formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.bits import four
from localr1.gpu.gemv import store


@triton.jit
def integer_gemv_kernel(
    words, units, sums, data, ids, add, out, n_blocks, n_tokens, rows, cols, row_blocks,
    x_token, x_matrix, out_token, out_matrix,
    LOAD: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr,
    SPAN: tl.constexpr, CHUNKS: tl.constexpr, GATED: tl.constexpr, REPEAT: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, EMULATED: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """As `gemv_kernel`, of one token; `x_token` and `x_matrix` count rows of activations.

    Programs of the same rows and other tokens are neighbours: they share what memory delivers.
    The first weights are on their way while the kernel in front ends: nobody writes those.
    EMULATED is for Triton's interpreter, which knows no instruction of the GPU's.
    """
    if ids is not None:  # that kernel may have chosen them
        pdl.start(PDL)
    N: tl.constexpr = 2 * REPEAT if GATED else REPEAT
    matrix, token = tl.program_id(1), tl.program_id(0) % n_tokens
    chosen = matrix if ids is None else tl.load(ids + matrix)
    first_row = tl.program_id(0) // n_tokens * (REPEAT * ROWS)
    first_block = chosen.to(tl.int64) * rows * (cols // (16 * GROUPS * CHUNKS))
    n_chunks = cols // (16 * GROUPS)
    c = tl.expand_dims(tl.arange(0, WIDTH), 0) + tl.zeros([ROWS, 1], tl.int32)
    parts = _weights(
        data, n_blocks, first_block, first_row, rows, cols, tl.minimum(c, n_chunks - 1),
        LOAD, GROUPS * CHUNKS, N, REPEAT, ROWS,
    )  # fmt: skip
    if ids is None:
        pdl.start(PDL)
    first_x = (matrix * x_matrix + token * x_token) * row_blocks
    totals = ()
    for _ in tl.static_range(N):
        totals = totals + (tl.zeros([ROWS, WIDTH], tl.float32),)
    for start in range(0, n_chunks, WIDTH):
        own, following = start + c, tl.minimum(start + WIDTH + c, n_chunks - 1)
        totals = _step(
            totals, parts, own, n_chunks, words, units, sums, first_x,
            CODES, SCALES, N_SCALES, OFFSET, GROUPS, GROUP_STEP, HALVES, SPAN, N, EMULATED,
        )  # fmt: skip
        if start + WIDTH < n_chunks:
            parts = _weights(
                data, n_blocks, first_block, first_row, rows, cols, following,
                LOAD, GROUPS * CHUNKS, N, REPEAT, ROWS,
            )  # fmt: skip
    place = matrix.to(tl.int64) * out_matrix + token * out_token
    store(totals, add, out, place, first_row, 1, rows, 0, 1, GATED, REPEAT, ROWS)


@triton.jit
def _weights(
    data, n_blocks, first_block, first_row, rows, cols, c,
    LOAD: tl.constexpr, BLOCK_GROUPS: tl.constexpr, N: tl.constexpr, REPEAT: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Chunks c of N rows, of `REPEAT * ROWS` from `first_row` on, and of the next matrix' too."""
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 4), 0), 0)
    blocks = cols // (16 * BLOCK_GROUPS)
    parts = ()
    for i in tl.static_range(N):
        row = first_row + i % REPEAT * ROWS + tl.expand_dims(tl.arange(0, ROWS), 1)
        row = tl.minimum(row, rows - 1) + i // REPEAT * rows
        first = first_block + row.to(tl.int64) * blocks
        parts = parts + (LOAD(data, None, n_blocks.to(tl.int64), first, row, c, lane, cols, True),)
    return parts


@triton.jit
def _step(
    totals, parts, c, n_chunks, words, units, sums, first_x,
    CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr, OFFSET: tl.constexpr,
    GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr, SPAN: tl.constexpr,
    N: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """The totals with the products of chunks c, of those that are there, and the activations whose
    blocks begin at `first_x`.
    """
    inside = c < n_chunks
    c = tl.minimum(c, n_chunks - 1)
    k = c // HALVES * SPAN + c % HALVES * 16
    block = first_x + k // 128
    x = _activations(words, sums, block, k % 128, GROUPS, GROUP_STEP)
    unit = tl.where(inside, tl.load(units + block), 0.0)
    new = ()
    for i in tl.static_range(N):
        product = _product(x, parts[i], c, CODES, SCALES, N_SCALES, OFFSET, GROUPS, EMULATED)
        new = new + (totals[i] + unit * product,)
    return new


@triton.jit
def _activations(words, sums, block, within, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr):
    """Of each group of the chunks at `within` the blocks: 8 words and the sum of their values."""
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 4), 0), 0)
    place = block // 16 * 256 + within // 8 * 16 + block % 16
    x = ()
    for group in tl.static_range(GROUPS):
        at = tl.expand_dims((place + group * GROUP_STEP * 2) * 4, -1) + lane
        early, late = four(tl.load(words + at)), four(tl.load(words + (at + 64)))
        total = tl.load(sums + (block * 8 + within // 16 + group * GROUP_STEP // 16))
        x = x + ((early, late, total),)
    return x


@triton.jit
def _product(
    x, parts, c, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """A chunk's weights times its activations, float32 in units of the latter's scale."""
    product = tl.zeros(c.shape, tl.float32)
    for group in tl.static_range(GROUPS):
        early, late, total = x[group]
        codes = four(CODES(parts, c, group, True))
        integer = total * -OFFSET
        integer = dot4(early[0], early[1], codes[0], integer, EMULATED)
        integer = dot4(early[2], early[3], codes[1], integer, EMULATED)
        integer = dot4(late[0], late[1], codes[2], integer, EMULATED)
        integer = dot4(late[2], late[3], codes[3], integer, EMULATED)
        scales = SCALES(parts, c, group)
        product += scales[0] * integer.to(tl.float32)
        if N_SCALES > 1:
            product += scales[1] * total.to(tl.float32)
    return product


@triton.jit
def dot4(low, high, codes, total, EMULATED: tl.constexpr):
    """`total` plus four uint8 codes times the int16 halves of `low` and `high`."""
    if EMULATED:
        total += ((low << 16) >> 16) * (codes & 255).to(tl.int32)
        total += (low >> 16) * ((codes >> 8) & 255).to(tl.int32)
        total += ((high << 16) >> 16) * ((codes >> 16) & 255).to(tl.int32)
        total += (high >> 16) * (codes >> 24).to(tl.int32)
    else:
        total = tl.inline_asm_elementwise(
            "{ .reg .b32 t; dp2a.lo.s32.u32 t, $1, $3, $4; dp2a.hi.s32.u32 $0, $2, $3, t; }",
            "=r,r,r,r,r",
            [low, high, codes, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    return total
