"""RMSNorm: `x / rms(x) * weight`."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm

from cpu_experts import QuantTensor
from localr1.models.linear import float_tensor


class RMSNorm:
    """Over the last dimension, which the weight's length names."""

    def __init__(self, weight: QuantTensor, eps: float) -> None:
        self.weight = float_tensor(weight).flatten()
        self.values = self.weight.numpy()
        self.shape, self.eps = tuple(self.weight.shape), eps

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        """`x` float32 `[T, n]` -> the same shape. `add` is summed into `x` first, in place."""
        if add is not None:
            x += add
        return rms_norm(x, self.shape, self.weight, self.eps)
