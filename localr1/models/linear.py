"""Weights that are used as they lie in the file: `Linear` and `Embedding` over a `QuantTensor`.

Same call as torch's modules. The products run in the `cpu_experts` kernels on the file's own
blocks: float weights meet float32 activations, quantised ones int8 activations in two terms. One
term is what experts and feed-forwards take; here it would cost most of a model's distance to exact
logits (docs/log.md). A prompt's tokens meet quantised weights as bf16 where the CPU has AMX.
"""

from __future__ import annotations

from typing import Protocol

import torch

from cpu_experts import Activations, QuantTensor, bf16_products, matmul


class Weights(Protocol):
    """A file or folder of weights under GGUF names."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> QuantTensor: ...


def float_tensor(weight: QuantTensor) -> torch.Tensor:
    """A small weight (norm, bias, router) as float32."""
    return torch.from_numpy(weight.dequantize())


class Linear:
    """`y = x @ weight.T` for a weight of shape (rows, cols)."""

    def __init__(self, weight: QuantTensor) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor | Activations) -> torch.Tensor:
        """`x` float32 `[T, cols]` -> `[T, rows]`; `Activations` serve several products."""
        rows = x if isinstance(x, Activations) else Activations(x.numpy())
        if bf16_products.suits(len(rows.x), self.weight):
            return torch.from_numpy(bf16_products.product(rows.tiles(), self.weight))
        return torch.from_numpy(matmul(rows, self.weight, terms=2))


class Embedding:
    """Rows of a weight of shape (vocab, cols), turned to float32 as they are asked for."""

    def __init__(self, weight: QuantTensor) -> None:
        self.weight = weight

    def __call__(self, ids: list[int]) -> torch.Tensor:
        """Token ids -> float32 `[len(ids), cols]`."""
        return torch.from_numpy(self.weight.dequantize_rows(ids))
