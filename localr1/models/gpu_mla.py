"""Latent attention on the GPU (attention.py): absorbed for few tokens, expanded for prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cpu_experts import QuantTensor
from localr1.gpu import mla, mla_prefill
from localr1.gpu.activations import BLOCK, Activations, empty
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.linear import expanded, gemv, linear
from localr1.gpu.rope import rotate
from localr1.gpu.sizes import PIECE
from localr1.gpu.tiles import FEW
from localr1.models.attention import HeadProjections
from localr1.models.config import ModelConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights, float_tensor
from localr1.models.rope import softmax_scale

if TYPE_CHECKING:
    from localr1.models.gpu import GpuParts


class GpuMLA:
    """One layer's attention."""

    def __init__(self, parts: GpuParts, config: ModelConfig, weights: Weights, layer: int) -> None:
        c, prefix = config, f"blk.{layer}"
        self.parts, self.config, self.layer = parts, c, layer
        first = "attn_q_a" if c.q_lora_rank else "attn_q"
        inputs = [weights[f"{prefix}.{name}.weight"] for name in (first, "attn_kv_a_mqa")]
        self.joined = inputs[0].format.name == inputs[1].format.name
        self.inputs = [parts.upload(*inputs)] if self.joined else [*map(parts.upload, inputs)]
        self.widths = [weight.rows for weight in inputs]
        self.q_b = None
        if c.q_lora_rank:
            self.q_norm = parts.norm(weights[f"{prefix}.attn_q_a_norm.weight"], c.rms_norm_eps)
            self.q_b = parts.upload(weights[f"{prefix}.attn_q_b.weight"])
        norm = weights[f"{prefix}.attn_kv_a_norm.weight"]
        self.kv_norm = float_tensor(norm).flatten().to(parts.device)
        heads = HeadProjections(c, weights, prefix)
        self.k = parts.upload(heads.k if heads.k_transposed else _transposed(heads.k))
        self.v = parts.upload(heads.v)
        self.output = parts.upload(weights[f"{prefix}.attn_output.weight"])
        self.scale = softmax_scale(c.rope, c.qk_nope_head_dim + c.qk_rope_head_dim)

    def __call__(self, normed: Activations, x: torch.Tensor, cache: KVCache) -> None:
        if len(normed) <= FEW:
            attended = self._absorbed(*self._rotated(normed, cache, torch.float32), cache)
            linear(attended, self.output, out=x, add=x)
            return
        for first in range(0, len(normed), PIECE):
            piece = slice(first, first + PIECE)
            self._read(normed.values[piece], x[piece], cache, cache.length + first)

    def _read(self, normed: torch.Tensor, x: torch.Tensor, cache: KVCache, start: int) -> None:
        """A piece of a prompt, behind `start` tokens; its memory is free for the next one."""
        self.parts.position.fill_(start)
        queries, rotated = self._rotated(Activations(normed), cache, torch.bfloat16)
        values = self._expanded(queries.values, rotated, cache, start)
        linear(values.flatten(1), self.output, out=x, add=x)

    def _projected(self, normed: Activations) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries `[T, heads * (nope + rope)]` and latents with their keys `[T, rank + rope]`."""
        parts = [linear(normed, weight) for weight in self.inputs]
        queries, kv = parts[0].split(self.widths, dim=-1) if self.joined else parts
        if self.q_b is None:
            return queries.contiguous(), kv
        return linear(self.q_norm(queries), self.q_b), kv

    def _rotated(
        self, normed: Activations, cache: KVCache, dtype: torch.dtype
    ) -> tuple[Activations, torch.Tensor]:
        """Write the cache's rows at the position; queries `[T, heads, nope]` in `dtype`, and
        rotated ones `[T, heads, rope]` in bf16.
        """
        queries, kv = self._projected(normed)
        c, device = self.config, queries.device
        shape = len(queries), c.n_heads
        q_nope = torch.empty(*shape, c.qk_nope_head_dim, dtype=dtype, device=device)
        q_rope = torch.empty(*shape, c.qk_rope_head_dim, dtype=torch.bfloat16, device=device)
        made = None
        if dtype == torch.float32 and c.qk_nope_head_dim == BLOCK:
            made = empty(len(queries), BLOCK, device, c.n_heads)
        rotate(
            queries, kv, self.kv_norm, c.rms_norm_eps, self.parts.turns, self.parts.position,
            self._rows(cache), q_nope, q_rope, made,
        )  # fmt: skip
        return Activations(q_nope, made), q_rope

    def _rows(self, cache: KVCache) -> CacheRows:
        return CacheRows(*cache.of(self.layer))

    def _absorbed(self, q_nope: Activations, q_rope: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """All heads over the latents: `[T, heads * v_head_dim]`."""
        n_tokens, heads, rank = len(q_nope), self.config.n_heads, self.config.kv_lora_rank
        device = q_rope.device
        latent = torch.empty(n_tokens, heads, rank, dtype=torch.bfloat16, device=device)
        gemv(q_nope, self.k, out=latent)
        made = empty(n_tokens, rank, device, heads) if rank % BLOCK == 0 else None
        attended = mla.attend(
            latent, q_rope, self._rows(cache), self.parts.position, self.scale, self.parts.arch,
            mla.splits_for(n_tokens * heads, self.parts.multiprocessors), made=made,
        )  # fmt: skip
        return gemv(Activations(attended, made), self.v).flatten(1)

    def _expanded(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, cache: KVCache, start: int
    ) -> torch.Tensor:
        """Each head over keys and values of its own: `[T, heads, v_head_dim]`."""
        keys, values = expanded(self.k), expanded(self.v)  # [heads, rank, nope], [heads, v, rank]

        def expand(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (latent @ keys).transpose(0, 1), (latent @ values.mT).transpose(0, 1)

        return mla_prefill.attend(
            q_nope, q_rope, self._rows(cache), start, expand, self.config.v_head_dim,
            self.scale, self.parts.arch,
        )  # fmt: skip


def _transposed(k: QuantTensor) -> QuantTensor:
    """Keys `[heads, nope, rank]` of an old file the other way round: floats as they are, others,
    whose blocks run along the rows and must be undone, in float16 (inventory.keys_on_gpu).
    """
    heads, nope, rank = k.shape
    if k.format.name in ("F32", "F16", "BF16"):
        width = f"u{k.format.block_bytes}"
        turned = np.stack([part.reshape(nope, -1).view(width).T for part in k.parts])
        kind = k.format.name
    else:
        turned, kind = k.dequantize().transpose(0, 2, 1).astype("float16"), "F16"
    data = np.ascontiguousarray(turned).view("uint8")
    return QuantTensor(kind, (heads, rank, nope), (data,))
