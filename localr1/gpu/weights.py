"""Weights in a GPU's memory: the file's bytes, each block's parts laid into planes (formats.py).

The bytes go through small pinned buffers straight from the file's pages (staging.py), and are laid
apart by the GPU: no second copy in RAM, and in the GPU's memory only what the file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpu_experts import QuantTensor
from localr1.gpu.formats import GPU_FORMATS, GpuFormat
from localr1.gpu.staging import STAGED, Staging, bytes_at

Report = Callable[[int], None]


@dataclass(frozen=True)
class GpuWeight:
    """A weight matrix (rows, cols), or a stack (n, rows, cols).

    `data` uint8 holds the planes, one after the other; `scales` float32 (n *) ceil(rows / 128) *
    ceil(cols / 128), for FP8 only.
    """

    format: str
    shape: tuple[int, ...]
    data: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def n_blocks(self) -> int:
        """Blocks in all rows together."""
        return self.data.numel() // GPU_FORMATS[self.format].block_bytes

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def upload(
    tensors: QuantTensor | Sequence[QuantTensor],
    device: torch.device | str,
    stacked: bool = False,
    report: Report | None = None,
) -> GpuWeight:
    """Bring weights to the GPU; several of one format become one weight.

    Matrices of equal width are joined row below row (R1's `attn_q_a` and `attn_kv_a_mqa` meet the
    same input) or, `stacked`, made a stack (gate and up). `report` is called with the bytes that
    have been sent since its last call. ValueError where formats or shapes differ, or a row of
    floats is no multiple of 16 long.
    """
    parts = [tensors] if isinstance(tensors, QuantTensor) else list(tensors)
    layout = GPU_FORMATS[parts[0].format.name]
    shape = _shape(parts, layout, stacked)
    n_blocks = int(np.prod(shape)) // layout.block_values
    device = torch.device(device)
    data = torch.empty(n_blocks * layout.block_bytes, dtype=torch.uint8, device=device)
    planes = _planes(data, layout, n_blocks)
    staging, done = Staging(device), 0
    step = STAGED // layout.block_bytes
    for source in (array for tensor in parts for array in tensor.parts):
        for first in range(0, source.size // layout.block_bytes, step):
            piece = source[first * layout.block_bytes :][: step * layout.block_bytes]
            blocks = torch.empty(piece.size, dtype=torch.uint8, device=device)
            staging.send(bytes_at(piece.ctypes.data, piece.size), blocks)
            blocks = blocks.view(-1, layout.block_bytes)
            for plane, (begin, end) in zip(planes, layout.planes, strict=True):
                plane[done : done + len(blocks)] = blocks[:, begin:end]
            done += len(blocks)
            if report is not None:
                report(piece.size)
    scales = [scale.reshape(-1) for tensor in parts for scale in tensor.scales]
    return GpuWeight(
        layout.name,
        shape,
        data,
        torch.from_numpy(np.concatenate(scales)).to(device) if scales else None,
    )


def lay_apart(blocks: torch.Tensor, data: torch.Tensor, format: GpuFormat) -> None:
    """Write blocks as a file has them, uint8 on the GPU, into `data`, as GpuWeight has them."""
    rows = blocks.view(-1, format.block_bytes)
    for plane, (begin, end) in zip(_planes(data, format, len(rows)), format.planes, strict=True):
        plane.copy_(rows[:, begin:end])


def _planes(data: torch.Tensor, format: GpuFormat, n_blocks: int) -> list[torch.Tensor]:
    """The planes as [blocks, bytes of a block's part]."""
    widths = [end - begin for begin, end in format.planes]
    pieces = data.split([n_blocks * width for width in widths])
    return [piece.view(n_blocks, width) for piece, width in zip(pieces, widths, strict=True)]


def _shape(parts: list[QuantTensor], format: GpuFormat, stacked: bool) -> tuple[int, ...]:
    first = parts[0]
    if any(part.format.name != format.name or part.cols != first.cols for part in parts):
        raise ValueError("only weights of one format and width can be joined")
    if first.cols % format.block_values:
        raise ValueError(f"rows of {format.name} hold multiples of 16 values, not {first.cols}")
    if len(parts) == 1:
        return first.shape
    if any(len(part.shape) != 2 for part in parts):
        raise ValueError("stacks cannot be joined")
    if stacked:
        if any(part.rows != first.rows for part in parts):
            raise ValueError("a stack's matrices have equal heights")
        return (len(parts), first.rows, first.cols)
    if any(part.rows % 128 for part in parts[:-1]) and format.name == "FP8_E4M3":
        raise ValueError("FP8 matrices can be joined at multiples of 128 rows only")
    return (sum(part.rows for part in parts), first.cols)
