"""A prompt's experts on the GPU: each meets all its tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from localr1.gpu.activation import swiglu
from localr1.gpu.combine import combine
from localr1.gpu.linear import grouped
from localr1.gpu.sizes import SLOTS
from localr1.gpu.weights import GpuWeight


class Slots(NamedTuple):
    """The choices of all tokens, in the order of the experts that they are: slots `bounds[e]` to
    `bounds[e + 1]` are of expert e. `tokens` int64 `[T * k]` says whose choice a slot is, `places`
    int32 `[T, k]` at which slot a choice is.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    bounds: list[int]


def slots_of(ids: torch.Tensor, n_experts: int) -> Slots:
    """Of the choices `ids` int32 `[T, k]`; waits for the GPU that makes them."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    places = torch.empty_like(flat)
    places[order] = torch.arange(len(flat), dtype=flat.dtype, device=flat.device)
    ends = flat.bincount(minlength=n_experts).cumsum(0).tolist()
    return Slots(order // ids.shape[1], places.view(ids.shape), [0, *ends])


def add_answers(
    out: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    slots: Slots,
    bank: Sequence[GpuWeight],
    first: int = 0,
) -> None:
    """Add to `out` what some experts answer to `x`, both float32 `[T, hidden]`, by `weights`
    float32 `[T, k]`. `bank` is their gate, up and down; the first of them is expert `first`.
    """
    gate, up, down = bank
    bounds = slots.bounds[first : first + gate.shape[0] + 1]
    for begin in range(bounds[0], bounds[-1], SLOTS):
        end = min(begin + SLOTS, bounds[-1])
        own = [min(max(bound, begin), end) - begin for bound in bounds]
        rows = x[slots.tokens[begin:end]]
        hidden = swiglu(grouped(rows, gate, own), grouped(rows, up, own))
        combine(grouped(hidden, down, own), slots.places, weights, out, begin)
