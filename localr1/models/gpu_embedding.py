"""The embedding of a model that lies on the GPU as a whole: the GPU reads the rows by itself.

So it can go on with a token that it has drawn (localr1.engine.ahead). The weight stays in RAM, its
blocks laid into planes as on the GPU, unless the head is the same one and there already.
"""

from __future__ import annotations

import torch

from cpu_experts import QuantTensor
from localr1.gpu.embedding import embed
from localr1.gpu.registered import register
from localr1.gpu.weights import GpuWeight, upload


class GpuEmbedding:
    """Rows of `weight` (vocab, cols), which the GPU can read."""

    def __init__(self, weight: GpuWeight, device: torch.device) -> None:
        self.weight, self._device = weight, device

    @classmethod
    def in_ram(cls, weight: QuantTensor, device: torch.device) -> GpuEmbedding:
        """Of a copy in RAM. GpuError where the driver refuses to read that."""
        copy = upload(weight, "cpu")
        scales = None if copy.scales is None else copy.scales.to(device)
        made = cls(GpuWeight(copy.format, copy.shape, copy.data, scales), device)
        if device.type == "cuda":
            register(copy.data, made)
        return made

    @property
    def copied_bytes(self) -> int:
        """Bytes of RAM."""
        return self.weight.data.nbytes if self.weight.data.is_cpu else 0

    def __call__(self, ids: list[int]) -> torch.Tensor:
        """Token ids -> float32 `[len(ids), cols]` on the GPU."""
        out = torch.empty(len(ids), self.weight.shape[1], device=self._device)
        embed(self.weight, torch.tensor(ids, dtype=torch.int32).to(self._device), out)
        return out
