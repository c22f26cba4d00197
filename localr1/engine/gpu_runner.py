"""Under the loop, a model of ours on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import cpu_experts
from cpu_experts.mailbox import MailboxError
from localr1.engine import halves
from localr1.engine.ahead import DecodeAhead
from localr1.engine.gpu_draw import GpuDraw
from localr1.engine.graph import DecodeGraph
from localr1.engine.runner import SUPER_CHUNK, Runner
from localr1.engine.sampler import Sampler
from localr1.errors import LocalR1Error
from localr1.gpu.failures import told
from localr1.models.gpu import GpuParts
from localr1.models.gpu_embedding import GpuEmbedding
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Transformer


class GpuRunner(Runner):
    """`model` on `parts`. A token is one CUDA graph: begun ahead where the GPU has the whole model,
    else behind one call for the CPU's layers if it has any; where the mailbox does not work, kernel
    after kernel, and `problem` says why. Its methods raise what `told` does.
    """

    chunk = SUPER_CHUNK

    def __init__(self, model: Transformer, parts: GpuParts, context: int) -> None:
        self.model, self._parts = model, parts
        self.vocab_size = model.config.vocab_size
        self._cache = model.new_cache(context)
        self._graph: DecodeGraph | DecodeAhead | None = None
        self.problem = ""
        self.reads_embedding = isinstance(model.token_embd, GpuEmbedding)  # the GPU does
        if isinstance(model.token_embd, GpuEmbedding):
            self._graph = ahead = DecodeAhead(model, model.token_embd, parts, self._cache)
            self._draw: Callable[[Sampler, torch.Tensor], int] = ahead.draw
            return
        self._draw = GpuDraw(self.vocab_size, parts.device)
        try:
            self._graph = DecodeGraph(model, parts, self._cache)
        except (LocalR1Error, MailboxError) as problem:
            self.problem = f"{problem}; tokens take longer"

    @property
    def cache(self) -> KVCache:
        return self._cache

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """As `Runner.read`; yields after each layer."""
        with told():
            yield from self._read(ids)

    def _read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        self.rest()
        torch.set_num_threads(cpu_experts.get_threads())
        n_layers = len(self.model.blk)
        for layer, state in enumerate(halves.read(self.model, self._parts, ids, self._cache)):
            hidden = state
            yield (layer + 1) / n_layers
        yield self.model.head(hidden, last=1)

    @told()
    def step(self, token: int) -> torch.Tensor:
        """As `Runner.step`."""
        if self._graph is not None:
            return self._graph.step(token)
        *_, hidden = self.model.layers([token], self._cache)
        return self.model.head(hidden)

    @told()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """As `Runner.logits`."""
        self.rest()
        with self._parts.stage.prompt(len(ids)):
            *_, hidden = self.model.layers(ids, self._cache)
        return self.model.head(hidden).cpu()

    @told()
    @torch.inference_mode()
    def draw(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """As `Runner.draw`."""
        return self._draw(sampler, logits)

    @told()
    def rest(self) -> None:
        """As `Runner.rest`: the CPU's threads sleep, and so does the GPU."""
        if self._graph is not None:
            self._graph.rest()
