"""What a token's experts answer, summed by their weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, LatentSizes

_BLOCK = 1024


@triton.jit
def combine_kernel(
    answers, places, weights, out, first, n_answers, WIDTH: tl.constexpr, K: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t] += sum_j weights[t, j] * answers[places[t, j] - first] over the places that `answers`
    holds; columns `program_id(1) * BLOCK ...` of token t = `program_id(0)`.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    n_here, sums = 0, tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(K):
        place = tl.load(places + token * K + j) - first
        here = tl.where(place >= 0, tl.where(place < n_answers, 1, 0), 0)
        answer = answers + place.to(tl.int64) * WIDTH + columns
        weight = tl.load(weights + token * K + j)
        sums += weight * tl.load(answer, mask=columns < WIDTH * here, other=0.0)
        n_here += here
    if n_here > 0:
        row = out + token * WIDTH + columns
        tl.store(row, tl.load(row, mask=inside, other=0.0) + sums, mask=inside)


def combine(
    answers: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor,
    first: int,
) -> None:
    """Add to `out` float32 `[T, n]` the `answers` float32 `[m, n]`, which are those at the places
    `first` to `first + m`; `places` int32 and `weights` float32 `[T, k]`. All are contiguous.
    """
    n_tokens, width = out.shape
    launch(
        combine_kernel, (n_tokens, triton.cdiv(width, _BLOCK)), answers, places, weights, out,
        first, len(answers), WIDTH=width, K=places.shape[1], BLOCK=_BLOCK,
    )  # fmt: skip


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Routed experts' answers, in a prompt."""
    signature = {"answers": "*fp32", "places": "*i32", "weights": "*fp32", "out": "*fp32"}
    signature |= {"first": "i32", "n_answers": "i32"}
    own = {"WIDTH": sizes.hidden_size, "K": sizes.n_experts_per_tok, "BLOCK": _BLOCK}
    yield Configuration(combine_kernel, signature, own, 4, 2)
