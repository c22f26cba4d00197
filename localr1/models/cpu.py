"""The parts of a model on the CPU: quantised products in cpu_experts, the rest in torch."""

from __future__ import annotations

import torch

from cpu_experts import Activations, ExpertBank, QuantTensor
from localr1.models import cache_layout
from localr1.models.architecture import Config
from localr1.models.attention import MLA
from localr1.models.config import ModelConfig
from localr1.models.dense_config import DenseConfig
from localr1.models.experts import MLP, Experts
from localr1.models.gate import Gate
from localr1.models.gqa import GQA
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Embedding, Linear, Weights
from localr1.models.norm import RMSNorm
from localr1.models.rope import Rope


class CpuParts:
    """See parts.py. `context` is the most tokens that will be attended to."""

    def __init__(self, config: Config, context: int) -> None:
        self.config, self.rope = config, Rope(config.rope, context)

    def of_layer(self, layer: int) -> CpuParts:
        return self

    def linear(self, weight: QuantTensor) -> Linear:
        return Linear(weight)

    def embedding(self, weight: QuantTensor, head: object) -> Embedding:
        return Embedding(weight)

    def norm(self, weight: QuantTensor, eps: float) -> RMSNorm:
        return RMSNorm(weight, eps)

    def gate(self, config: ModelConfig, weights: Weights, prefix: str) -> Gate:
        return Gate(config, weights, prefix)

    def mlp(self, bank: ExpertBank, layer: int | None = None) -> MLP:
        return MLP(bank)

    def attention(self, config: Config, weights: Weights, layer: int) -> MLA | GQA:
        if isinstance(config, DenseConfig):
            return GQA(config, weights, layer, self.rope)
        return MLA(config, weights, layer, self.rope)

    def experts(self, layer: int, bank: ExpertBank) -> Experts:
        return Experts(bank)

    def new_cache(self, context: int) -> KVCache:
        return KVCache(self.config.n_layers, context, cache_layout.on_cpu(self.config))

    def hidden(self, rows: torch.Tensor, cache: KVCache) -> torch.Tensor:
        return rows

    def activations(self, normed: torch.Tensor) -> Activations:
        return Activations(normed.numpy())  # quantised once for all
