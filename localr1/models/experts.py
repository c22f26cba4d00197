"""SwiGLU feed-forwards over a bank of experts: the routed ones, and the bank of one that is a dense
FFN.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from cpu_experts import Activations, ExpertBank, bf16_products, moe_forward


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
        bank = self.bank
        if bf16_products.suits(len(x), bank.gate, bank.up, bank.down):
            return torch.from_numpy(bf16_products.feed_forward(normed.tiles(), bank))
        return torch.from_numpy(moe_forward(normed, *_only_expert(len(x)), bank))


@lru_cache(maxsize=4)
def _only_expert(n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights of tokens that all take expert 0, whole."""
    return np.zeros((n_tokens, 1), np.int32), np.ones((n_tokens, 1), np.float32)
