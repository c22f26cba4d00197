"""RMSNorm on the GPU, and the residual sum in front of it: `x += add; out = x / rms(x) * weight`.

One program per row, float32 throughout. The addend may lie in pinned host memory (the routed
experts' answer, mailbox.py): it is read past the caches, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.activations import BLOCK, Integers, store_integers
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, AnySizes, GroupedSizes


@triton.jit
def norm_kernel(
    x, add, weight, out, words, units, sums, eps,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr = False,
):  # fmt: skip
    """Row `program_id(0)` of x float32 [T, WIDTH], rows STRIDE apart; out [T, WIDTH], and the same
    as integers (activations.py) if `words`, `units` and `sums` are there.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    weights = tl.load(weight + columns, mask=inside, other=0.0)
    pdl.relay(PDL)
    values = tl.load(x + row * STRIDE + columns, mask=inside, other=0.0)
    if add is not None:
        values += tl.load(add + row * WIDTH + columns, mask=inside, other=0.0, cache_modifier=".cv")
        tl.store(x + row * STRIDE + columns, values, mask=inside)
    factor = tl.rsqrt(tl.sum(values * values, 0) / WIDTH + eps)
    scaled = values * factor * weights
    tl.store(out + row * WIDTH + columns, scaled.to(out.dtype.element_ty), mask=inside)
    if words is not None:
        own = tl.arange(0, BLOCK // 128)
        ROW_BLOCKS: tl.constexpr = (WIDTH + 127) // 128
        there = own < ROW_BLOCKS
        block = tl.program_id(0) * ROW_BLOCKS + own
        store_integers(tl.reshape(scaled, [BLOCK // 128, 128]), block, there, words, units, sums)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    add: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    integers: Integers | None = None,
) -> torch.Tensor:
    """`x` float32 `[T, n]`, its rows any distance apart -> `out` `[T, n]`, made float32 if not
    given, and `integers` if that is.

    `add` float32 `[T, n]` is summed into `x` first, in place; it may be `out`.
    """
    n_tokens, width = x.shape
    if out is None:
        out = torch.empty(n_tokens, width, dtype=torch.float32, device=x.device)
    launch(
        norm_kernel, (n_tokens,), x, add, weight, out, *(integers or [None] * 3)[:3], eps,
        num_warps=_warps(width), WIDTH=width, STRIDE=x.stride(0), BLOCK=_block(width),
    )  # fmt: skip
    return out


def _block(width: int) -> int:
    return max(BLOCK, triton.next_power_of_2(width))


def _warps(width: int) -> int:
    """So many that each thread has 16 values, or 32 of a wide row, which is in flight at once."""
    return max(1, min(8, _block(width) // 512))


def configurations(arch: int, sizes: AnySizes = R1) -> Iterator[Configuration]:
    """Norms of the hidden state, with and without a sum, and of the query's low rank, alone or
    beside the latent that is projected with it; each with integers and without.
    """
    hidden = sizes.hidden_size
    kinds = [(hidden, hidden, add) for add in (None, "*fp32")]
    if not isinstance(sizes, GroupedSizes) and sizes.q_lora_rank:
        rank, latent = sizes.q_lora_rank, sizes.kv_lora_rank + sizes.qk_rope_head_dim
        kinds += [(rank, stride, None) for stride in (rank, rank + latent)]
    for width, stride, add in kinds:
        for out, made in (("*fp32", True), ("*fp32", False), ("*bf16", False)):
            signature = {"x": "*fp32", "weight": "*fp32", "out": out, "eps": "fp32"}
            constants: dict[str, Any] = {"WIDTH": width, "STRIDE": stride, "BLOCK": _block(width)}
            pointers = {"add": add, "words": "*i32", "units": "*fp32", "sums": "*i32"}
            for name, kind in pointers.items():
                if kind and (made or name == "add"):
                    signature[name] = kind
                else:
                    constants[name] = None
            yield Configuration(norm_kernel, signature, constants, _warps(width), 2)
