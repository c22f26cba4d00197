"""Grouped-query attention on the GPU (gqa.py): the cache holds the same, in bf16 or int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from cpu_experts import QuantTensor
from localr1.gpu import gqa, gqa_prefill
from localr1.gpu.activations import BLOCK, Activations, empty
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.gqa_rope import rotate
from localr1.gpu.linear import linear
from localr1.gpu.sizes import PIECE
from localr1.gpu.tiles import FEW
from localr1.models.dense_config import DenseConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights, float_tensor

if TYPE_CHECKING:
    from localr1.models.gpu import GpuParts


class GpuGQA:
    """One layer's attention."""

    def __init__(self, parts: GpuParts, config: DenseConfig, weights: Weights, layer: int) -> None:
        self.parts, self.config, self.layer = parts, config, layer
        prefix = f"blk.{layer}"
        inputs = [weights[f"{prefix}.attn_{part}.weight"] for part in "qkv"]
        self.inputs = [parts.upload(*run) for run in _joined(inputs)]
        self.output = parts.upload(weights[f"{prefix}.attn_output.weight"])

        def vectors(*names: str) -> torch.Tensor:
            """Small weights of this layer, one behind the other."""
            found = [float_tensor(weights[f"{prefix}.{name}"]).flatten() for name in names]
            return torch.cat(found).to(parts.device)

        self.bias = self.norms = None
        if config.architecture == "qwen2":
            self.bias = vectors("attn_q.bias", "attn_k.bias", "attn_v.bias")
        if config.architecture == "qwen3":
            self.norms = vectors("attn_q_norm.weight", "attn_k_norm.weight")
        self.scale = 1 / math.sqrt(config.head_dim)

    def __call__(self, normed: Activations, x: torch.Tensor, cache: KVCache) -> None:
        c, parts, rows = self.config, self.parts, CacheRows(*cache.of(self.layer))
        if len(normed) <= FEW:
            n_rows = len(normed) * (c.n_heads // c.n_kv_heads)
            splits = gqa.splits_for(n_rows, c.n_kv_heads, parts.multiprocessors)
            queries = self._rotated(normed, rows)
            made = None
            if c.head_dim % BLOCK == 0:
                made = empty(len(normed), c.n_heads * c.head_dim, x.device)
            values = gqa.attend(queries, rows, parts.position, self.scale, splits, made=made)
            linear(Activations(values.flatten(1), made), self.output, out=x, add=x)
            return
        for first in range(0, len(normed), PIECE):
            piece, start = slice(first, first + PIECE), cache.length + first
            parts.position.fill_(start)
            queries = self._rotated(Activations(normed.values[piece]), rows)
            values = gqa_prefill.attend(queries, rows, start, self.scale, parts.arch)
            linear(values.flatten(1), self.output, out=x[piece], add=x[piece])

    def _rotated(self, normed: Activations, rows: CacheRows) -> torch.Tensor:
        """Write the cache's rows at the position; queries bf16 `[T, heads, head_dim]`."""
        c, n_tokens, device = self.config, len(normed), normed.values.device
        width = sum(weight.shape[0] for weight in self.inputs)
        projected = torch.empty(n_tokens, width, device=device)
        first = 0
        for weight in self.inputs:
            linear(normed, weight, out=projected[:, first : first + weight.shape[0]])
            first += weight.shape[0]
        queries = torch.empty(n_tokens, c.n_heads, c.head_dim, dtype=torch.bfloat16, device=device)
        rotate(
            projected, self.bias, self.norms, c.rms_norm_eps, self.parts.turns, c.rope.interleaved,
            self.parts.position, rows, queries,
        )  # fmt: skip
        return queries


def _joined(weights: Sequence[QuantTensor]) -> list[list[QuantTensor]]:
    """Neighbours that can be one weight on the GPU: of one format, and FP8's tiles undivided."""
    runs = [[weights[0]]]
    for last, weight in pairwise(weights):
        undivided = weight.format.name != "FP8_E4M3" or last.rows % 128 == 0
        if weight.format.name == last.format.name and undivided:
            runs[-1].append(weight)
        else:
            runs.append([weight])
    return runs
