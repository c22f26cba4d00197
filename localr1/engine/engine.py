"""The loop: read a prompt, then one token after the other. Token ids in, token ids out.

The engine knows nothing of text, templates or thinking, nor how logits are computed (runner.py).
It keeps the ids of the tokens in the cache, so that a prompt which begins like the last one is read
from where the two part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from localr1.engine.runner import Runner, finite
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import ContextFull, LocalR1Error
from localr1.events import FinishReason, GenerationStats, Progress
from offload.placement import Placement

_MIN_PROGRESS = 64  # shorter prompts are read before a person could see a bar


class Engine:
    """One model, one cache, one conversation at a time."""

    def __init__(
        self,
        runner: Runner,
        stop_ids: frozenset[int],
        placement: Placement | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.runner = runner
        self.placement = placement  # the plan that the model was loaded by
        self.notes = notes  # what a user should know of how it was loaded
        self.stop_ids = stop_ids
        self.cache = runner.cache
        self.max_context = runner.cache.max_length
        self.ids: list[int] = []  # the tokens in the cache
        self.stats = GenerationStats()
        self.finish_reason: FinishReason = "stop"

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return self.cache.length

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens of `ids`, from the first on, the cache holds."""
        return _common_prefix(self.ids, ids)

    def prefill(self, ids: Sequence[int]) -> Iterator[Progress | torch.Tensor]:
        """Read a prompt: yields progress on the way, last the logits `[1, vocab]` behind it.

        The longest common prefix with what the cache holds is kept; at least one token is read.
        The runner's chunks are committed one by one: a closed iterator loses at most one of them.
        """
        self._check(ids)
        self._truncate(min(self.known(ids), len(ids) - 1))
        start = self.position
        while self.position < len(ids):
            chunk = list(ids[self.position : self.position + self.runner.chunk])
            done = self.position - start
            for item in self.runner.read(chunk):
                if isinstance(item, torch.Tensor):
                    logits = item
                elif len(ids) - start >= _MIN_PROGRESS:
                    read = done + round(len(chunk) * item)
                    yield Progress("Reading the prompt", read, len(ids) - start, "tokens")
            self._commit(chunk)
        yield logits

    def step(self, token: int) -> torch.Tensor:
        """Append one token to the cache; the logits `[1, vocab]` behind it."""
        if self.position >= self.max_context:
            raise self._full(self.position + 1)
        logits = self.runner.step(token)
        self._commit([token])
        return logits

    def stream(
        self, ids: Sequence[int], params: SamplingParams | None = None
    ) -> Iterator[Progress | int]:
        """Read `ids`, then write: progress values, then token ids (the one that ends the text left
        out).

        Sets `stats` and `finish_reason`. Closing the iterator at any point leaves the cache well-
        formed. Raises ContextFull, before any work, when the prompt leaves no room for an answer.
        """
        params = params or SamplingParams()
        self._check(ids)
        try:
            yield from self._stream(ids, params)
        finally:
            self.runner.rest()

    def _stream(self, ids: Sequence[int], params: SamplingParams) -> Iterator[Progress | int]:
        cached = min(self.known(ids), len(ids) - 1)
        began = time.perf_counter()
        for item in self.prefill(ids):
            if isinstance(item, Progress):
                yield item
            else:
                logits = item
        read = time.perf_counter()
        sampler, written = Sampler(params, ids), 0
        self.finish_reason = "interrupted"
        while True:
            token = self.runner.draw(sampler, logits)
            ended = token in self.stop_ids
            written += not ended
            self.stats = GenerationStats(
                prompt_tokens=len(ids),
                cached_tokens=cached,
                completion_tokens=written,
                prefill_seconds=read - began,
                decode_seconds=time.perf_counter() - read,
            )
            if ended:
                self.finish_reason = "stop"
                return
            yield token
            if written == params.max_tokens:
                self.finish_reason = "length"
                return
            if self.position == self.max_context:
                self.finish_reason = "context"
                return
            logits = self.step(token)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Teacher-forced logits behind every token: float32 `[len(ids), vocab]`."""
        if len(ids) > self.max_context:
            raise self._full(len(ids))
        self._check_vocabulary(ids)
        self._truncate(0)
        out = np.empty((len(ids), self.runner.vocab_size), np.float32)
        for begin in range(0, len(ids), self.runner.chunk):
            chunk = list(ids[begin : begin + self.runner.chunk])
            out[begin : begin + len(chunk)] = finite(self.runner.logits(chunk))
            self._commit(chunk)
        return out

    def _check(self, ids: Sequence[int]) -> None:
        if len(ids) >= self.max_context:
            raise self._full(len(ids))
        if not ids:
            raise LocalR1Error("the prompt is empty", "give at least one token")
        self._check_vocabulary(ids)

    def _check_vocabulary(self, ids: Sequence[int]) -> None:
        size = self.runner.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise LocalR1Error(f"a token id lies outside the vocabulary of {size}", "")

    def _full(self, n_tokens: int) -> ContextFull:
        return ContextFull(
            f"the text takes {n_tokens:,} tokens and the context holds {self.max_context:,}",
            "start anew with /clear, shorten the message, or give a larger --context",
        )

    def _commit(self, ids: list[int]) -> None:
        # In this order an interrupt between the two costs one re-read token, never a wrong one.
        self.cache.commit(len(ids))
        self.ids += ids

    def _truncate(self, length: int) -> None:
        self.cache.truncate(length)
        del self.ids[length:]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n
