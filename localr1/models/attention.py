"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), in its two equal forms.

A token leaves one latent row `[kv_lora_rank]` and one rotated key `[qk_rope_head_dim]` in the
cache. *Absorbed*, the key and value up-projections move to the query's and the output's side, and
all heads attend over the latents themselves: least memory traffic, for decoding. *Expanded*, keys
and values of every head are made from the latents once for all queries: least arithmetic, for long
prompts.
"""

from __future__ import annotations

import numpy as np
import torch

from cpu_experts import FORMATS, Activations, QuantTensor, matmul_stack, matmul_stack_t
from localr1.models.config import ModelConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Linear, Weights
from localr1.models.norm import RMSNorm
from localr1.models.rope import Rope, softmax_scale

_WORKSPACE = 1 << 24  # float32 values of one temporary of the expanded form (64 MiB)


class HeadProjections:
    """The per-head up-projections of the latent, from either layout a file may hold.

    Old files: `attn_kv_b`, rows `[head][nope keys | values]` over the latent. New ones: `attn_k_b`,
    already transposed for absorption `[head][latent][nope]`, and `attn_v_b`
    `[head][value][latent]`.
    """

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.k_transposed = f"{prefix}.attn_k_b.weight" in weights
        if self.k_transposed:
            self.k = weights[f"{prefix}.attn_k_b.weight"]
            self.v = weights[f"{prefix}.attn_v_b.weight"]
        else:
            self.k, self.v = _split_kv_b(weights[f"{prefix}.attn_kv_b.weight"], config)

    def absorb(self, q_nope: np.ndarray) -> np.ndarray:
        """Queries `[T, heads, nope]` -> queries on the latent `[T, heads, kv_lora_rank]`."""
        if self.k_transposed:
            return matmul_stack(q_nope, self.k, terms=2)
        return matmul_stack_t(q_nope, self.k)

    def values(self, context: np.ndarray) -> np.ndarray:
        """Attended latents `[T, heads, kv_lora_rank]` -> values `[T, heads, v_head_dim]`."""
        return matmul_stack(context, self.v, terms=2)

    def expand(self, head: int, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `[S, kv_lora_rank]` -> a head's keys `[S, nope]` and values `[S, v_head_dim]`."""
        k = torch.from_numpy(self.k.dequantize(head))
        v = torch.from_numpy(self.v.dequantize(head))
        return latent @ (k if self.k_transposed else k.T), latent @ v.T


def _split_kv_b(kv_b: QuantTensor, config: ModelConfig) -> tuple[QuantTensor, QuantTensor]:
    """Cut `attn_kv_b` into stacks of keys and values, one part per head, without a copy."""
    nope, v, rank = config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
    if kv_b.scales and (nope % 128 or v % 128):  # a head's rows would cut through a scale's block
        floats = kv_b.dequantize().view("uint8")
        kv_b = QuantTensor(FORMATS["F32"], kv_b.shape, (floats,))
    rows = kv_b.parts[0].reshape(config.n_heads, nope + v, -1)
    scales = [s.reshape(config.n_heads, (nope + v) // 128, -1) for s in kv_b.scales]
    k_scales = tuple(s[h, : nope // 128] for s in scales for h in range(config.n_heads))
    v_scales = tuple(s[h, nope // 128 :] for s in scales for h in range(config.n_heads))
    k = QuantTensor(kv_b.format, (config.n_heads, nope, rank), tuple(rows[:, :nope]), k_scales)
    return k, QuantTensor(kv_b.format, (config.n_heads, v, rank), tuple(rows[:, nope:]), v_scales)


class MLA:
    """One layer's attention. Names of weights are GGUF's."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: Rope) -> None:
        self.config, self.layer, self.rope = config, layer, rope
        prefix = f"blk.{layer}"
        self.attn_q_a = None
        if config.q_lora_rank:
            self.attn_q_a = Linear(weights[f"{prefix}.attn_q_a.weight"])
            norm = weights[f"{prefix}.attn_q_a_norm.weight"]
            self.attn_q_a_norm = RMSNorm(norm, config.rms_norm_eps)
            self.attn_q_b = Linear(weights[f"{prefix}.attn_q_b.weight"])
        else:
            self.attn_q_b = Linear(weights[f"{prefix}.attn_q.weight"])
        self.attn_kv_a_mqa = Linear(weights[f"{prefix}.attn_kv_a_mqa.weight"])
        norm = weights[f"{prefix}.attn_kv_a_norm.weight"]
        self.attn_kv_a_norm = RMSNorm(norm, config.rms_norm_eps)
        self.heads = HeadProjections(config, weights, prefix)
        self.attn_output = Linear(weights[f"{prefix}.attn_output.weight"])
        self.scale = softmax_scale(config.rope, config.qk_nope_head_dim + config.qk_rope_head_dim)
        # Absorbing costs this much more per query, expanding this much once per cached token.
        per_query = 2 * config.kv_lora_rank - config.qk_nope_head_dim - config.v_head_dim
        per_key = (config.qk_nope_head_dim + config.v_head_dim) * config.kv_lora_rank
        self.absorb_up_to = per_key // max(per_query, 1)

    def __call__(self, normed: torch.Tensor, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Normed hidden states `[T, hidden]` behind the committed tokens -> `[T, hidden]`, which
        is still to add to `x`.
        """
        shared = Activations(normed.numpy())
        q_nope, q_rope = self._queries(shared, cache.length)
        rows = cache.update(self.layer, self._latent(shared, cache.length))
        attend = self.absorbed if x.shape[0] <= self.absorb_up_to else self.expanded
        return self.attn_output(attend(q_nope, q_rope, rows).flatten(1))

    def _projected(self, x: Activations) -> torch.Tensor:
        """All heads' queries, not yet rotated: `[T, heads * (nope + rope)]`."""
        if self.attn_q_a is None:
            return self.attn_q_b(x)
        return self.attn_q_b(self.attn_q_a_norm(self.attn_q_a(x)))

    def _queries(self, x: Activations, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.config
        heads = self._projected(x).view(-1, c.n_heads, c.qk_nope_head_dim + c.qk_rope_head_dim)
        q_nope, q_rope = heads.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        return q_nope, self.rope(q_rope, start)  # [T, heads, nope], [T, heads, rope]

    def _latent(self, x: Activations, start: int) -> torch.Tensor:
        c = self.config
        latent, k_rope = self.attn_kv_a_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        rotated = self.rope(k_rope, start)
        return torch.cat((self.attn_kv_a_norm(latent), rotated), dim=-1)  # [T, width]

    def absorbed(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """All heads attend over the latent rows `[S, width]` -> `[T, heads, v_head_dim]`."""
        latent = torch.from_numpy(self.heads.absorb(q_nope.numpy()))
        queries = torch.cat((latent, q_rope), dim=-1)  # [T, heads, width]
        context = torch.empty(*queries.shape[:2], self.config.kv_lora_rank)
        for piece in _pieces(queries.shape[0], queries.shape[1] * rows.shape[0]):
            end = rows.shape[0] - queries.shape[0] + piece.stop
            scores = (queries[piece].flatten(0, 1) @ rows[:end].T).mul_(self.scale)
            scores = _mask_future(scores.view(-1, queries.shape[1], end))
            context[piece] = scores.softmax(-1) @ rows[:end, : self.config.kv_lora_rank]
        return torch.from_numpy(self.heads.values(context.numpy()))

    def expanded(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Each head attends over its own keys and values -> `[T, heads, v_head_dim]`."""
        latent, k_rope = rows.split(
            [self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1
        )
        n_tokens, n_keys = q_nope.shape[0], rows.shape[0]
        out = torch.empty(n_tokens, self.config.n_heads, self.config.v_head_dim)
        for head in range(self.config.n_heads):
            k_nope, values = self.heads.expand(head, latent)
            for piece in _pieces(n_tokens, n_keys):
                end = n_keys - n_tokens + piece.stop
                scores = q_nope[piece, head] @ k_nope[:end].T
                scores = scores.addmm_(q_rope[piece, head], k_rope[:end].T).mul_(self.scale)
                out[piece, head] = _mask_future(scores).softmax(-1) @ values[:end]
        return out


def _pieces(n_tokens: int, row: int) -> list[slice]:
    """Cut `n_tokens` queries so that `row` scores each stay within the workspace."""
    step = max(1, _WORKSPACE // row)
    return [slice(i, min(i + step, n_tokens)) for i in range(0, n_tokens, step)]


def _mask_future(scores: torch.Tensor) -> torch.Tensor:
    """Hide keys behind each query; the last query stands at the last key. Queries along dim 0."""
    n_queries, n_keys = scores.shape[0], scores.shape[-1]
    if n_queries == 1:
        return scores
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu_(n_keys - n_queries + 1)
    shape = [n_queries, *[1] * (scores.ndim - 2), n_keys]
    return scores.masked_fill_(future.view(shape), float("-inf"))
