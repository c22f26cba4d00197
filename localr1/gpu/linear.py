"""Products of activations with weights on the GPU: which kernel, in which tiles.

    y = gemv(x, w)              1 to 8 tokens: decoding
    y = gated_gemv(x, w)        the same through gate and up, and SwiGLU
    y = matmul(x, w)            many tokens: prompts
    y = linear(x, w)            whichever it is
    y = grouped(x, w, bounds)   some of many tokens with each matrix of a stack: a prompt's experts

Weights are exact and sums are float32. Weights that are integers meet activations as int16 in
`gemv` (activations.py), others as they are. `matmul` rounds both factors to bf16, but for F32
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from localr1.gpu.activations import Activations
from localr1.gpu.expansion import expand_kernel
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.gemv import gemv_kernel
from localr1.gpu.integer_gemv import integer_gemv_kernel
from localr1.gpu.launch import architecture, launch
from localr1.gpu.matmul import matmul_kernel
from localr1.gpu.tiles import EXPANDED, FEW, GemvTile, MatmulTile, gemv_tile, matmul_tile
from localr1.gpu.weights import GpuWeight


def linear(
    x: Activations | torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None = None,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """`gemv` for up to 8 tokens, `matmul` for more."""
    if len(x) <= FEW:
        return gemv(x, w, out, add)
    return matmul(x.values if isinstance(x, Activations) else x, w, out, add)


def gemv(
    x: Activations | torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None = None,
    add: torch.Tensor | None = None,
    ids: torch.Tensor | None = None,
    tile: GemvTile | None = None,
) -> torch.Tensor:
    """x [T, cols] -> out [T, rows], T from 1 to 8; a stack's out is [T, n, rows], and its x
    [T, n, cols], or [T, cols] for all of its matrices.

    `ids` int32 [k] are the matrices of a stack to take, in that order: x is then [T, k, cols].

    x is float32 or bf16, out either (float32 where it is made here); both may be parts of larger
    tensors. `add`, shaped and strided like `out` (and maybe `out` itself), is added to it.
    """
    return _gemv(x, w, out, add, ids, tile, _matrices(w, ids), w.shape[-2:], False)


def gated_gemv(
    x: Activations | torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None = None,
    tile: GemvTile | None = None,
) -> torch.Tensor:
    """silu(gate . x) * (up . x): x [T, cols] -> out [T, rows]; w (2, rows, cols) is gate and up."""
    if len(w.shape) != 3 or w.shape[0] != 2:
        raise ValueError(f"gate and up are a stack of 2, not {w.shape}")
    return _gemv(x, w, out, None, None, tile, 1, w.shape[-2:], True)


def matmul(
    x: torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None = None,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `gemv`, for any number of tokens."""
    n, (rows, cols) = _matrices(w, None), w.shape[-2:]
    x, out, strides = _prepared(x, w, out, add, n, rows, cols)
    n_tokens = len(x)
    tile = matmul_tile(_architecture(x), w.format, n_tokens)
    grid = -(-n_tokens // tile.tokens), -(-rows // tile.rows), n
    _matmul(grid, tile, x, w, None, add, out, strides)
    return out


def grouped(x: torch.Tensor, w: GpuWeight, bounds: Sequence[int]) -> torch.Tensor:
    """x [T, cols] -> float32 [T, rows]: tokens `bounds[i]` to `bounds[i + 1]` meet matrix i of the
    stack w, all T of them some matrix.
    """
    rows, cols = w.shape[-2:]
    if len(bounds) != w.shape[0] + 1 or (bounds[0], bounds[-1]) != (0, len(x)):
        raise ValueError(f"a stack {w.shape} does not share {len(x)} tokens as {bounds}")
    x, out, strides = _prepared(x, w, None, None, 1, rows, cols)
    asked = sum(first < end for first, end in pairwise(bounds))
    tile = matmul_tile(_architecture(x), w.format, len(x) // max(asked, 1))
    groups = [
        (i, first, end)
        for i, (begin, end) in enumerate(pairwise(bounds))
        for first in range(begin, end, tile.tokens)
    ]
    table = torch.tensor(groups, dtype=torch.int32, pin_memory=x.is_cuda)
    there = table.to(x.device, non_blocking=True)
    _matmul((len(groups), -(-rows // tile.rows), 1), tile, x, w, there, None, out, strides)
    return out


def _matmul(
    grid: tuple[int, int, int],
    tile: MatmulTile,
    x: torch.Tensor,
    w: GpuWeight,
    groups: torch.Tensor | None,
    add: torch.Tensor | None,
    out: torch.Tensor,
    strides: tuple[int, int, int, int],
) -> None:
    launch(
        matmul_kernel, grid, x, w.data, w.scales, groups, add, out, w.n_blocks, len(x),
        *w.shape[-2:], *strides, num_warps=tile.num_warps, num_stages=tile.num_stages,
        FLOAT_DOT=not x.is_cuda, **tile.constants(w.format),
    )  # fmt: skip


def expanded(w: GpuWeight, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """The weight's numbers, of its shape: exact as float32, rounded as bf16."""
    rows, cols = w.shape[-2:]
    out = torch.empty(w.shape, dtype=dtype, device=w.data.device)
    n = w.shape[0] if len(w.shape) == 3 else 1
    launch(
        expand_kernel, (rows, n), w.data, w.scales, out, w.n_blocks, rows, cols,
        **GPU_FORMATS[w.format].constants(), WIDTH=EXPANDED,
    )  # fmt: skip
    return out


def _gemv(
    x: Activations | torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None,
    add: torch.Tensor | None,
    ids: torch.Tensor | None,
    tile: GemvTile | None,
    n: int,
    shape: tuple[int, ...],
    gated: bool,
) -> torch.Tensor:
    rows, cols = shape
    activations = x if isinstance(x, Activations) else Activations(x)
    x, out, strides = _prepared(activations.values, w, out, add, n, rows, cols)
    if not 1 <= len(x) <= FEW:
        raise ValueError(f"1 to {FEW} tokens, not {len(x)}")
    if tile is None:
        tile = gemv_tile(_architecture(x), w.format, n * rows, cols, len(x), gated)
    down = -(-rows // (tile.repeat * tile.rows))
    sizes = w.n_blocks, len(x), rows, cols
    options: dict[str, Any] = {"num_warps": tile.num_warps, "max_registers": tile.max_registers}
    options |= tile.constants(w.format, len(x), gated)
    if GPU_FORMATS[w.format].integer:
        own = activations.integers
        between = (own.between, int(own.between > 1))  # rows between tokens, between matrices
        launch(
            integer_gemv_kernel, (down * len(x), n), *own[:3], w.data, ids, add, out, *sizes,
            own.row_blocks, *between, *strides[2:], EMULATED=not x.is_cuda, **options,
        )  # fmt: skip
    else:
        given = x, w.data, w.scales, ids, add, out
        launch(gemv_kernel, (down, n), *given, *sizes, *strides, **options)
    return out


def _matrices(w: GpuWeight, ids: torch.Tensor | None) -> int:
    """How many matrices x meets."""
    if ids is not None:
        return len(ids)
    return w.shape[0] if len(w.shape) == 3 else 1


def _prepared(
    x: torch.Tensor,
    w: GpuWeight,
    out: torch.Tensor | None,
    add: torch.Tensor | None,
    n: int,
    rows: int,
    cols: int,
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int, int]]:
    """x as the kernels read it, out, and the strides of tokens and matrices in both."""
    if n > 1 and x.dim() == 2:
        x = x.unsqueeze(1).expand(-1, n, -1)
    between = (n,) if x.dim() == 3 else ()
    if x.shape != (len(x), *between, cols) or (n > 1 and not between):
        raise ValueError(f"a weight {w.shape} takes no activations {tuple(x.shape)}")
    if x.stride(-1) != 1 or any(stride % 8 for stride in x.stride()[:-1]):
        x = x.contiguous()
    if out is None:
        out = torch.empty(*x.shape[:-1], rows, dtype=torch.float32, device=x.device)
    if out.shape != (*x.shape[:-1], rows) or out.stride(-1) != 1:
        raise ValueError(f"out is {tuple(out.shape)}, not {(*x.shape[:-1], rows)}")
    if add is not None and (add.shape != out.shape or add.stride() != out.stride()):
        raise ValueError("what is added lies in memory as the result does")
    x_matrix, out_matrix = (x.stride(1), out.stride(1)) if between else (0, 0)
    return x, out, (x.stride(0) // 8, x_matrix // 8, out.stride(0), out_matrix)


def _architecture(x: torch.Tensor) -> int:
    return architecture(x.device.index) if x.is_cuda else 90
