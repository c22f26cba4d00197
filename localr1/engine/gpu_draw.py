"""Choosing a token on the GPU: of a vocabulary's logits only an id comes back.

The choice is `Sampler`'s (localr1.gpu.sampling says how near); what the GPU leaves open, the
sampler settles with the same random number. All kernels are one CUDA graph: one by one, Python
took a fifth of a 7B's token to launch them.
"""

from __future__ import annotations

from functools import partial

import torch

from localr1.engine.capture import captured
from localr1.engine.runner import finite, not_finite
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.gpu.sampling import NOT_FINITE, SETTINGS, Workspace, sample


class GpuDraw:
    """`draw(sampler, logits)`: the next token id, which lies in `token` int32 `[1]` too. It is
    drawn from `logits` float32 `[1, vocab]`, where others are copied.

    `begin` only enqueues that, and `end` waits for it: what is enqueued between them has begun when
    the id is known, or, where `settled` is False, has begun with an id that does not count.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.token = torch.empty(1, dtype=torch.int32, device=device)
        self.settled = False
        self._work = Workspace.empty(vocab_size, device)
        self.logits = torch.zeros(1, vocab_size, device=device)
        self._given = torch.zeros(len(SETTINGS), dtype=torch.float64, pin_memory=on_gpu)
        self._settings = torch.zeros(len(SETTINGS), dtype=torch.float64, device=device)
        self._answer = torch.empty(1, dtype=torch.int32, pin_memory=on_gpu)
        self._uniform = 0.0
        self._seen = torch.zeros(vocab_size, dtype=torch.uint8, device=device)
        self._sampler: Sampler | None = None  # whose tokens `_seen` marks
        self._drawn = torch.cuda.Event() if on_gpu else None
        # By whether tokens are penalised.
        self._run = [captured(partial(self._body, seen), device) for seen in (None, self._seen)]

    def __call__(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """Logits float32 `[1, vocab]` on the GPU -> an id. Raises BadFile (not finite)."""
        self.begin(sampler, logits)
        return self.end(sampler)

    def begin(self, sampler: Sampler, logits: torch.Tensor) -> None:
        """Enqueue the choice by logits float32 `[1, vocab]`, which may be overwritten behind it."""
        self._uniform = sampler.uniform()
        self._given.copy_(_settings(sampler.params, self._uniform))
        if logits is not self.logits:
            self.logits.copy_(logits)
        if sampler.seen is not None and sampler is not self._sampler:
            self._mark(sampler)
        self._run[sampler.seen is not None]()
        if self._drawn is not None:
            self._drawn.record()

    def end(self, sampler: Sampler) -> int:
        """The id. Raises BadFile where the logits are not finite."""
        if self._drawn is not None:
            self._drawn.synchronize()
        token = int(self._answer)
        if token == NOT_FINITE:
            raise not_finite()
        self.settled = token >= 0
        if not self.settled:
            self._sampler = None  # what it chooses is not marked yet
            return sampler.chosen(finite(self._work.logits.cpu()), self._uniform)
        if sampler.seen is not None:
            sampler.seen.add(token)
        return token

    def _body(self, seen: torch.Tensor | None) -> None:
        """From `logits` and `_given` to `token` and `_answer`."""
        self._settings.copy_(self._given, non_blocking=True)
        sample(self.logits[0], self._settings, seen, self._work, self.token, self._answer)

    def _mark(self, sampler: Sampler) -> None:
        """The tokens that the penalty weighs down; the kernels mark what they choose."""
        self._seen.zero_()
        self._seen[list(sampler.seen or ())] = 1
        self._sampler = sampler


def _settings(params: SamplingParams, uniform: float) -> torch.Tensor:
    """What the kernels read, float64 in the order of SETTINGS."""
    found = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_k": params.top_k,
        "repetition_penalty": params.repetition_penalty,
        "uniform": uniform,
    }
    return torch.tensor([found[name] for name in SETTINGS], dtype=torch.float64)
