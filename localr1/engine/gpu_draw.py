"""Choosing a token on the GPU: of a vocabulary's logits only an id comes back.

The choice is `Sampler`'s (localr1.gpu.sampling says how near); what the GPU leaves open, the
sampler settles with the same random number. All kernels are one CUDA graph: one by one, Python
took a fifth of a 7B's token to launch them.
"""

from __future__ import annotations

import torch

from localr1.engine.runner import finite, not_finite
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.gpu.sampling import SETTINGS, UNSETTLED, Workspace, sample


class GpuDraw:
    """`draw(sampler, logits)`: the next token id."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._work = Workspace.empty(vocab_size, device)
        self._logits = torch.zeros(1, vocab_size, device=device)
        self._given = torch.zeros(len(SETTINGS), dtype=torch.float64, pin_memory=on_gpu)
        self._settings = torch.zeros(len(SETTINGS), dtype=torch.float64, device=device)
        self._token = torch.empty(1, dtype=torch.int32, device=device)
        self._answer = torch.empty(2, dtype=torch.int32, pin_memory=on_gpu)  # token, is finite
        self._seen = torch.zeros(vocab_size, dtype=torch.uint8, device=device)
        self._sampler: Sampler | None = None  # whose tokens `_seen` marks
        # By whether tokens are penalised.
        self._graphs = [self._captured(None), self._captured(self._seen)] if on_gpu else []

    def __call__(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """Logits float32 `[1, vocab]` on the GPU -> an id. Raises BadFile (not finite)."""
        uniform = sampler.uniform()
        self._given.copy_(_settings(sampler.params, uniform))
        self._logits.copy_(logits)
        seen = self._marked(sampler)
        if self._graphs:
            self._graphs[seen is not None].replay()
            torch.cuda.current_stream().synchronize()
        else:
            self._body(seen)
        token, is_finite = self._answer.tolist()
        if not is_finite:
            raise not_finite()
        if token == UNSETTLED:
            self._sampler = None  # what it chooses is not marked yet
            return sampler(finite(logits.cpu())[0], uniform)
        if sampler.seen is not None:
            sampler.seen.add(token)
        return token

    def _body(self, seen: torch.Tensor | None) -> None:
        """From `_logits` and `_given` to `_answer`."""
        self._settings.copy_(self._given, non_blocking=True)
        sample(self._logits[0], self._settings, seen, self._work, self._token)
        self._answer[:1].copy_(self._token, non_blocking=True)
        self._answer[1:].copy_(self._logits.isfinite().all(), non_blocking=True)

    def _captured(self, seen: torch.Tensor | None) -> torch.cuda.CUDAGraph:
        """`_body`, run once, so that every kernel is loaded, then recorded."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            self._body(seen)
        stream.synchronize()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
            self._body(seen)
        return graph

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
