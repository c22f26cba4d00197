"""SwiGLU feed-forwards over a bank of experts: the routed ones, and the bank of one that is a dense
FFN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from cpu_experts import Activations, ExpertBank, bf16_products, moe_forward

_CPU = torch.device("cpu")


class Answer(NamedTuple):
    """Experts that have done their work: the CPU has nothing else to do meanwhile."""

    sum: torch.Tensor

    def wait(self) -> torch.Tensor:
        """float32 `[T, hidden]`."""
        return self.sum


class Experts:
    """Routed experts in host RAM: `y[t] = sum_j weights[t, j] * FFN[ids[t, j]](x[t])`."""

    def __init__(self, bank: ExpertBank) -> None:
        self.bank = bank

    def start(self, normed: Activations, ids: torch.Tensor, weights: torch.Tensor) -> Answer:
        """`normed` `[T, hidden]`, `ids` int32 `[T, k]`, `weights` float32 `[T, k]`."""
        answer = moe_forward(normed, ids.numpy(), weights.numpy(), self.bank)
        return Answer(torch.from_numpy(answer))


class MLP:
    """A dense FFN or the shared expert: one expert that every token takes with weight 1."""

    def __init__(self, bank: ExpertBank) -> None:
        self.bank = bank

    def __call__(self, normed: torch.Tensor | Activations, x: torch.Tensor) -> torch.Tensor:
        """`normed` `[T, hidden]` -> float32 `[T, hidden]`, which is still to add to `x`."""
        if not isinstance(normed, Activations):
            normed = Activations(normed.numpy())
        return torch.from_numpy(feed_forward(normed, self.bank))


def feed_forward(
    x: np.ndarray | Activations, bank: ExpertBank, out: np.ndarray | None = None
) -> np.ndarray:
    """The bank's only expert, which every token takes whole: `x` `[T, hidden]` -> float32
    `[T, hidden]`, in `out` where that is given; on AMX where that suits.
    """
    if not bf16_products.suits(x.shape[0], bank.gate, bank.up, bank.down):
        ids, weights = (part.numpy() for part in only_expert(x.shape[0]))
        return moe_forward(x, ids, weights, bank, out)
    shared = x if isinstance(x, Activations) else Activations(x)
    answer = bf16_products.feed_forward(shared.tiles(), bank)
    if out is None:
        return answer
    np.copyto(out, answer)
    return out


def only_expert(
    n_tokens: int, width: int = 1, device: torch.device = _CPU
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int32 and weights float32 `[T, width]` of tokens that all take expert 0, whole, and no
    other.
    """
    ids = torch.full((n_tokens, width), -1, dtype=torch.int32, device=device)
    ids[:, 0] = 0
    return ids, torch.ones(n_tokens, width, device=device)
