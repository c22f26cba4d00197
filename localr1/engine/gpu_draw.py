"""Choosing a token on the GPU: of a vocabulary's logits only an id comes back.

The choice is `Sampler`'s (localr1.gpu.sampling says how near); what the GPU leaves open, the
sampler settles with the same random number.
"""

from __future__ import annotations

import torch

from localr1.engine.runner import finite, not_finite
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.gpu.sampling import SETTINGS, UNSETTLED, Workspace, sample


class GpuDraw:
    """`draw(sampler, logits)`: the next token id."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._work = Workspace.empty(vocab_size, device)
        self._settings = torch.empty(len(SETTINGS), dtype=torch.float64, device=device)
        self._token = torch.empty(1, dtype=torch.int32, device=device)
        self._answer = torch.empty(2, dtype=torch.int32, pin_memory=pinned)  # token, is finite
        self._seen = torch.zeros(vocab_size, dtype=torch.uint8, device=device)
        self._sampler: Sampler | None = None  # whose tokens `_seen` marks

    def __call__(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """Logits float32 `[1, vocab]` on the GPU -> an id. Raises BadFile (not finite)."""
        uniform = sampler.uniform()
        self._settings.copy_(_settings(sampler.params, uniform))
        sample(logits[0], self._settings, self._marked(sampler), self._work, self._token)
        self._answer[:1].copy_(self._token, non_blocking=True)
        self._answer[1:].copy_(logits.isfinite().all(), non_blocking=True)
        if logits.is_cuda:
            torch.cuda.current_stream().synchronize()
        token, is_finite = self._answer.tolist()
        if not is_finite:
            raise not_finite()
        if token == UNSETTLED:
            self._sampler = None  # what it chooses is not marked yet
            return sampler(finite(logits.cpu())[0], uniform)
        if sampler.seen is not None:
            sampler.seen.add(token)
        return token

    def _marked(self, sampler: Sampler) -> torch.Tensor | None:
        """The tokens that the penalty weighs down; the kernels mark what they choose."""
        if sampler.seen is None:
            return None
        if sampler is not self._sampler:
            self._seen.zero_()
            self._seen[list(sampler.seen)] = 1
            self._sampler = sampler
        return self._seen


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
