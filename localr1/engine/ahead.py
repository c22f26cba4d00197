"""Tokens of a model that lies on the GPU as a whole, each begun before we know which one it is.

A token is one CUDA graph, which begins with the id that was drawn on the GPU (gpu_draw.py). Drawing
and the next token are enqueued while the last one is still computed, so nothing waits for Python:
it hears which token was drawn, and shows it, meanwhile. Where the text ends there, or another token
is wanted, that work was for nothing: what it leaves in the cache is not committed.
"""

from __future__ import annotations

import torch

from localr1.engine.capture import captured
from localr1.engine.gpu_draw import GpuDraw
from localr1.engine.sampler import Sampler
from localr1.gpu.embedding import embed
from localr1.models.gpu import GpuParts
from localr1.models.gpu_embedding import GpuEmbedding
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Hidden, Transformer


class DecodeAhead:
    """`draw(sampler, logits)` and `step(token)` of `model`, whose embedding is the GPU's, over one
    cache.
    """

    def __init__(
        self, model: Transformer, embedding: GpuEmbedding, parts: GpuParts, cache: KVCache
    ) -> None:
        c, device = model.config, parts.device
        self.model, self.parts, self.cache = model, parts, cache
        self._embedding = embedding
        self._draw = GpuDraw(c.vocab_size, device)
        self._behind = torch.zeros(1, dtype=torch.int32, device=device)
        self._x = torch.empty(1, c.hidden_size, device=device)
        self._length = -1  # what `_behind` holds, if it is known
        self._begun: tuple[int, int] | None = None  # the token at work, and those in front of it
        self._run = captured(self._body, device)

    def _body(self) -> None:
        weight, position = self._embedding.weight, self.parts.position
        embed(weight, self._draw.token, self._x, self._behind, position)
        hidden = Hidden(self._x)
        for block in self.model.blk:
            hidden = block(hidden, self.cache)
        self._draw.logits.copy_(self.model.head(hidden))

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """Logits `[1, vocab]` of one token behind the committed ones, without committing it: on
        the GPU, which may be still at work on them. The next call overwrites them.
        """
        begun, self._begun = self._begun, None
        if begun != (token, self.cache.length):
            self._draw.token.fill_(token)
            self._start()
        return self._draw.logits

    @torch.inference_mode()
    def draw(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """The next token id; the GPU goes on with it. Raises BadFile (not finite)."""
        self._begun, length = None, self.cache.length
        self._draw.begin(sampler, logits)
        going_on = length < self.cache.max_length
        if going_on:
            self._start()
        token = self._draw.end(sampler)
        if going_on and self._draw.settled:
            self._begun = token, length
        return token

    def _start(self) -> None:
        """Enqueue the token that lies on the GPU, behind the committed ones."""
        if self._length != self.cache.length:
            self._behind.fill_(self.cache.length)
        self._length = -1  # until all is enqueued
        self._run()
        self._length = self.cache.length + 1

    def rest(self) -> None:
        """No token will come for a while: let the GPU end what was begun."""
        self._begun = None
        if self.parts.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
