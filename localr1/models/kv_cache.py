"""MLA's latent cache: one row of `kv_lora_rank + qk_rope_head_dim` values per layer and token.

Rows beyond `length` are scratch: a step writes them layer by layer and `commit` makes them count,
so an interrupted step leaves no half-written token.
"""

from __future__ import annotations

import torch


class KVCache:
    """Latents of up to `max_length` tokens: float32 `[n_layers, max_length, width]`.

    The memory is reserved here and touched only as tokens come, so a long context costs nothing
    until it is used.
    """

    def __init__(self, n_layers: int, max_length: int, width: int) -> None:
        self.rows = torch.empty(n_layers, max_length, width)
        self.max_length = max_length
        self.length = 0

    @staticmethod
    def nbytes(n_layers: int, max_length: int, width: int) -> int:
        """Bytes that a full cache of this shape takes."""
        return n_layers * max_length * width * 4

    def update(self, layer: int, latent: torch.Tensor) -> torch.Tensor:
        """Write `latent` `[T, width]` behind the committed rows; all rows up to it `[S, width]`."""
        end = self.length + latent.shape[0]
        rows = self.rows[layer]
        rows[self.length : end] = latent
        return rows[:end]

    def commit(self, n_tokens: int) -> None:
        """Make the next `n_tokens` rows of every layer count."""
        assert self.length + n_tokens <= self.max_length
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)
