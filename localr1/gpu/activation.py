"""SwiGLU on the GPU: `silu(gate) * up`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, AnySizes, ffn_widths

_BLOCK = 1024


@triton.jit
def swiglu_kernel(
    gate, up, out, WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Columns `program_id(1) * BLOCK ...` of row `program_id(0)`; out [T, WIDTH] is contiguous."""
    pdl.start(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    g = tl.load(gate + row * STRIDE + columns, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * STRIDE + columns, mask=inside, other=0.0).to(tl.float32)
    value = g / (1.0 + tl.exp(-g)) * u
    tl.store(out + row * WIDTH + columns, value.to(out.dtype.element_ty), mask=inside)


def swiglu(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`gate`, `up` float32 or bf16 `[T, n]` with the same distance between rows -> `out` `[T, n]`,
    made in their type if not given.
    """
    assert gate.stride() == up.stride()
    n_tokens, width = gate.shape
    if out is None:
        out = torch.empty(n_tokens, width, dtype=gate.dtype, device=gate.device)
    grid = (n_tokens, triton.cdiv(width, _BLOCK))
    launch(swiglu_kernel, grid, gate, up, out, WIDTH=width, STRIDE=gate.stride(0), BLOCK=_BLOCK)
    return out


def configurations(arch: int, sizes: AnySizes = R1) -> Iterator[Configuration]:
    """The shared expert and the dense layers, gate and up apart or side by side."""
    for width in sorted(ffn_widths(sizes)):
        for stride in (width, 2 * width):
            for source, out in (("*fp32", "*fp32"), ("*fp32", "*bf16"), ("*bf16", "*bf16")):
                yield Configuration(
                    swiglu_kernel,
                    {"gate": source, "up": source, "out": out},
                    {"WIDTH": width, "STRIDE": stride, "BLOCK": _BLOCK},
                    4,
                    2,
                )
