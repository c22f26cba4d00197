"""Rows of the embedding, chosen by token ids in the GPU's memory: drawn there, or brought there.

The weight may lie in RAM that the driver knows (registered.py): a row of some KB comes through PCIe
as fast as its hidden state would. A token that was drawn on the GPU goes on so without us.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu.dequantise import dequantised
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.weights import GpuWeight

_WIDTH = 64  # chunks of a row that a program reads


@triton.jit
def embed_kernel(
    data, scales, ids, behind, position, out, n_blocks, rows, cols,
    LOAD: tl.constexpr, CODES: tl.constexpr, SCALES: tl.constexpr, N_SCALES: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, GROUP_STEP: tl.constexpr, HALVES: tl.constexpr,
    SPAN: tl.constexpr, CHUNKS: tl.constexpr, UP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out[t, :] = row ids[t] (row 0 for none) of the weight, for token `program_id(0)` and WIDTH
    chunks of its columns. The number at `behind`, if there, goes to `position`, and grows by 1.
    """
    token = tl.program_id(0)
    row = tl.minimum(tl.maximum(tl.load(ids + token), 0), rows - 1)
    blocks = cols // (16 * GROUPS * CHUNKS)
    lane = tl.expand_dims(tl.expand_dims(tl.arange(0, 16), 0), 0)
    c = tl.program_id(1) * WIDTH + tl.expand_dims(tl.arange(0, WIDTH), 0)
    inside = tl.expand_dims(c < blocks * CHUNKS, -1)
    c = tl.minimum(c, blocks * CHUNKS - 1)
    first = (tl.full([1, 1], 0, tl.int64) + row) * blocks
    parts = LOAD(data, scales, n_blocks.to(tl.int64), first, row, c, lane, cols, False)
    k = tl.expand_dims(c // HALVES * SPAN + c % HALVES * 16, -1) + lane
    for group in tl.static_range(GROUPS):
        values = dequantised(parts, c, group, CODES, SCALES, N_SCALES, OFFSET, UP)
        tl.store(out + token.to(tl.int64) * cols + k + group * GROUP_STEP, values, mask=inside)
    if behind is not None:
        if (token == 0) & (tl.program_id(1) == 0):
            here = tl.load(behind)
            tl.store(position, here)
            tl.store(behind, here + 1)


def embed(
    w: GpuWeight,
    ids: torch.Tensor,
    out: torch.Tensor,
    behind: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
) -> None:
    """Write rows `ids` int32 `[T]` of `w` (vocab, cols), exact, to `out` float32 `[T, cols]`.

    With `behind` int32 `[1]`: that many tokens lie in front, which `position` int32 `[1]` learns,
    and one more the next time.
    """
    vocab, cols = w.shape
    programs = triton.cdiv(cols // GPU_FORMATS[w.format].chunk_values, _WIDTH)
    launch(
        embed_kernel, (len(ids), programs), w.data, w.scales, ids, behind, position, out,
        w.n_blocks, vocab, cols, **GPU_FORMATS[w.format].constants(), WIDTH=_WIDTH,
    )  # fmt: skip


def configurations(
    arch: int, formats: Iterable[str] = ("Q4_K", "Q8_0", "FP8_E4M3")
) -> Iterator[Configuration]:
    """Of one token that was drawn, and of prompts."""
    signature = {"data": "*u8", "ids": "*i32", "out": "*fp32"}
    signature |= dict.fromkeys(("n_blocks", "rows", "cols"), "i32")
    pointers = dict.fromkeys(("behind", "position"), "*i32")
    for name in formats:
        own, constants = signature, GPU_FORMATS[name].constants() | {"WIDTH": _WIDTH}
        if name == "FP8_E4M3":
            own = own | {"scales": "*fp32"}
        else:
            constants["scales"] = None
        yield Configuration(embed_kernel, own | pointers, constants)
        yield Configuration(embed_kernel, own, constants | dict.fromkeys(pointers))
