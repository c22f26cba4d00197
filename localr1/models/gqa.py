"""Grouped-query attention (arXiv 2305.13245): heads of queries share heads of keys and values.

A token leaves `[keys of every key head | values of every key head]` in the cache, keys normed and
rotated. Prompts attend in pieces of bounded memory. A token that is written has steps of its own
(cpu_experts/grouped_attention.py), which this form defines.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from cpu_experts import Activations
from localr1.models.dense_config import DenseConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Linear, Weights, float_tensor
from localr1.models.rope import Rope

_WORKSPACE = 1 << 24  # float32 values of one piece's mask (64 MiB)
_PIECE = 256  # tokens: more would compute too much of what the mask hides


class GQA:
    """One layer's attention. Names of weights are GGUF's."""

    def __init__(self, config: DenseConfig, weights: Weights, layer: int, rope: Rope) -> None:
        self.config, self.layer, self.rope = config, layer, rope
        prefix = f"blk.{layer}"
        self.attn_q = Linear(weights[f"{prefix}.attn_q.weight"])
        self.attn_k = Linear(weights[f"{prefix}.attn_k.weight"])
        self.attn_v = Linear(weights[f"{prefix}.attn_v.weight"])
        self.attn_output = Linear(weights[f"{prefix}.attn_output.weight"])
        biases, norms = config.architecture == "qwen2", config.architecture == "qwen3"

        def vector(name: str, has: bool) -> torch.Tensor:
            """A small weight of this layer; empty where the architecture has none."""
            return float_tensor(weights[f"{prefix}.{name}"]).flatten() if has else torch.empty(0)

        self.biases = [vector(f"attn_{part}.bias", biases) for part in "qkv"]
        self.q_norm = vector("attn_q_norm.weight", norms)
        self.k_norm = vector("attn_k_norm.weight", norms)
        vectors = (*self.biases, self.q_norm, self.k_norm)
        self.vectors = tuple(vector.numpy() for vector in vectors)
        self.scale = 1 / math.sqrt(config.head_dim)

    def __call__(self, normed: torch.Tensor, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Normed hidden states `[T, hidden]` behind the committed tokens -> `[T, hidden]`, which
        is still to add to `x`.
        """
        shared = Activations(normed.numpy())
        parts = [linear(shared) for linear in (self.attn_q, self.attn_k, self.attn_v)]
        queries, rows = self._rotated(parts, cache.length)
        return self.attn_output(self.attend(queries, cache.update(self.layer, rows)).flatten(1))

    def _rotated(self, parts: list[torch.Tensor], start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections -> queries `[T, heads, head_dim]` and cache rows `[T, width]`."""
        c = self.config
        if c.architecture == "qwen2":
            parts = [part + bias for part, bias in zip(parts, self.biases, strict=True)]
        q, k, v = parts
        queries, keys = (part.unflatten(-1, (-1, c.head_dim)) for part in (q, k))
        if c.architecture == "qwen3":
            queries = rms_norm(queries, (c.head_dim,), self.q_norm, c.rms_norm_eps)
            keys = rms_norm(keys, (c.head_dim,), self.k_norm, c.rms_norm_eps)
        rows = torch.cat((self.rope(keys, start).flatten(1), v), dim=-1)
        return self.rope(queries, start), rows

    def attend(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Queries `[T, heads, head_dim]` over cache rows `[S, width]`, the last query standing at
        the last row -> `[T, heads, head_dim]`.
        """
        c, n_tokens, n_keys = self.config, len(queries), len(rows)
        group = c.n_heads // c.n_kv_heads
        # [2, key heads, S, head_dim], a view: a key head's queries are rows of one product
        keys, values = rows.view(n_keys, 2, c.n_kv_heads, c.head_dim).permute(1, 2, 0, 3)
        out = torch.empty_like(queries)
        step = max(1, min(_PIECE, _WORKSPACE // (group * n_keys)))
        for first in range(0, n_tokens, step):
            piece = slice(first, min(first + step, n_tokens))
            end = n_keys - n_tokens + piece.stop
            grouped = queries[piece].unflatten(1, (c.n_kv_heads, group)).transpose(0, 1)
            attended = scaled_dot_product_attention(
                grouped.flatten(1, 2).unsqueeze(0),  # [1, key heads, tokens * group, head_dim]
                keys[:, :end].unsqueeze(0),
                values[:, :end].unsqueeze(0),
                attn_mask=_past(piece.stop - first, end).repeat_interleave(group, 0),
                scale=self.scale,
            )
            attended = attended[0].unflatten(1, (-1, group)).transpose(0, 1)
            out[piece] = attended.flatten(1, 2)
        return out


def _past(n_queries: int, n_keys: int) -> torch.Tensor:
    """What is added to scores `[n_queries, n_keys]`: -inf for keys behind a query."""
    future = torch.full((n_queries, n_keys), float("-inf"))
    return future.triu_(n_keys - n_queries + 1)
