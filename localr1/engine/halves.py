"""A long prompt on a GPU: with its experts streamed there, or in two halves side by side, so that
GPU and CPU work at the same time.

While the CPU computes one half's experts, the GPU attends for the other. In each layer the first
half goes first: what it leaves in the cache is what the second one attends to. But half as many
tokens meet each expert, which then is slower by more than the GPU's part where they are few
(docs/log.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from localr1.gpu.sizes import halved_from
from localr1.models.gpu import GpuParts
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Hidden, Transformer


def halves(n_tokens: int, parts: GpuParts) -> list[int]:
    """The sizes of the pieces in which a prompt is read."""
    if parts.stage.streams(n_tokens) or n_tokens < halved_from(parts.config):
        return [n_tokens]
    return [n_tokens // 2, n_tokens - n_tokens // 2]


def read(model: Transformer, parts: GpuParts, ids: list[int], cache: KVCache) -> Iterator[Hidden]:
    """As `Transformer.layers`, of a model on `parts`; yields the last piece's hidden states."""
    pieces, first = [], 0
    for size in halves(len(ids), parts):
        ahead = copy.copy(cache)  # the same memory, behind the pieces before
        ahead.length += first
        pieces.append(model.layers(ids[first : first + size], ahead))
        first += size
    with parts.stage.prompt(len(ids)):
        for states in zip(*pieces, strict=True):
            yield states[-1]
