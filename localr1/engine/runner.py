"""What computes under the loop: `Runner`, and the one over a model of ours.

A runner fills its cache behind the tokens that are committed and gives logits; which tokens these
are, and when they count, is the engine's business. The other one is llama.cpp's (llama_cpp.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
import torch

import cpu_experts
from localr1.engine.cpu_graph import CpuGraph
from localr1.engine.sampler import Sampler
from localr1.errors import BadFile
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Transformer

SUPER_CHUNK = 32_768  # tokens that pass through one layer before the next: layer-major prefill


class Cache(Protocol):
    """What a conversation left in memory: the first `length` tokens of it count."""

    length: int
    max_length: int

    def commit(self, n_tokens: int) -> None: ...
    def truncate(self, length: int) -> None: ...
    @property
    def layout(self) -> str: ...
    def save(self, file: BinaryIO, begin: int, end: int) -> int: ...
    def load(self, file: BinaryIO, n_tokens: int) -> int: ...


class Runner(Protocol):
    """Computes behind the committed tokens of its cache, and commits nothing.

    `chunk`: tokens of a prompt that are read between two commits. Logits are float32 and may be
    overwritten by the next call; those of `logits` are on the CPU.
    """

    chunk: int
    vocab_size: int
    problem: str = ""  # why it is slower than it might be

    @property
    def cache(self) -> Cache: ...

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """Read `ids`: yields the share that is done, last the logits `[1, vocab]` behind them."""
        ...

    def step(self, token: int) -> torch.Tensor:
        """The logits `[1, vocab]` behind one more token."""
        ...

    def logits(self, ids: list[int]) -> torch.Tensor:
        """The logits `[len(ids), vocab]` behind each of `ids`."""
        ...

    def draw(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """The sampler's choice by logits `[1, vocab]` that `read` or `step` gave."""
        return sampler(finite(logits)[0])

    def rest(self) -> None:
        """No token will be asked for now."""
        return


def finite(logits: torch.Tensor) -> np.ndarray:
    """The logits as numpy's; damaged weights are found here, before they choose a token."""
    if not bool(logits.isfinite().all()):
        raise not_finite()
    return logits.numpy()


def not_finite() -> BadFile:
    """What to say of logits that are no numbers."""
    hint = "its weights are damaged: localr1 verify MODEL compares them with the original"
    return BadFile("the model computes numbers that are not finite", hint)


class TransformerRunner(Runner):
    """A model of ours on the CPU."""

    chunk = SUPER_CHUNK

    def __init__(self, model: Transformer, context: int) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self._cache = model.new_cache(context)
        self._graph = CpuGraph(model, self._cache)

    @property
    def cache(self) -> KVCache:
        return self._cache

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """As `Runner.read`; yields after each layer."""
        if len(ids) == 1:
            yield self.step(ids[0])
            return
        torch.set_num_threads(cpu_experts.get_threads())
        n_layers = len(self.model.blk)
        for layer, state in enumerate(self.model.layers(ids, self.cache)):
            hidden = state
            yield (layer + 1) / n_layers
        yield self.model.head(hidden, last=1)

    def step(self, token: int) -> torch.Tensor:
        """As `Runner.step`: one compiled call (cpu_graph.py)."""
        return self._graph.step(token)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """As `Runner.logits`."""
        *_, hidden = self.model.layers(ids, self.cache)
        return self.model.head(hidden)
