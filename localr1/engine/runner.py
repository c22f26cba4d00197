"""What computes under the loop: `Runner`, and the one over a model of ours.

A runner fills its cache behind the tokens that are committed and gives logits; which tokens these
are, and when they count, is the engine's business. The other one is llama.cpp's (llama_cpp.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

import torch

import cpu_experts
from localr1.models.attention import is_small
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Transformer

if TYPE_CHECKING:  # a machine without a GPU needs no Triton
    from localr1.engine.graph import DecodeGraph

_SUPER_CHUNK = 32_768  # tokens that pass through one layer before the next: layer-major prefill


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

    `chunk`: tokens of a prompt that are read between two commits. Logits are float32 on the CPU and
    may be overwritten by the next call.
    """

    chunk: int
    vocab_size: int

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


class TransformerRunner:
    """A model of ours. `graph` makes one token one CUDA graph, for models on a GPU."""

    chunk = _SUPER_CHUNK

    def __init__(
        self,
        model: Transformer,
        context: int,
        graph: Callable[[KVCache], DecodeGraph] | None = None,
    ) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.cache = model.new_cache(context)
        self.graph = graph(self.cache) if graph else None

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """As `Runner.read`; yields after each layer."""
        torch.set_num_threads(cpu_experts.get_threads())
        n_layers = len(self.model.blk)
        for layer, state in enumerate(self.model.layers(ids, self.cache)):
            hidden = state
            yield (layer + 1) / n_layers
        yield self.model.head(hidden, last=1)

    def step(self, token: int) -> torch.Tensor:
        """As `Runner.step`."""
        # torch's barriers cost milliseconds on a busy machine: only where there is work for them.
        small = is_small(self.model.config, self.cache.length)
        torch.set_num_threads(1 if small else cpu_experts.get_threads())
        if self.graph is not None:
            return self.graph.step(token)
        *_, hidden = self.model.layers([token], self.cache)
        return self.model.head(hidden)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """As `Runner.logits`."""
        *_, hidden = self.model.layers(ids, self.cache)
        return self.model.head(hidden)
