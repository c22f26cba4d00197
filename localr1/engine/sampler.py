"""From logits to a token id: temperature, top-k, top-p, min-p and the repetition penalty.

Order as in llama.cpp and transformers: penalty, temperature, top-k, top-p, min-p. Greedy at
temperature 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from localr1.errors import USAGE, LocalR1Error

_FIRST_LOOK = 256  # candidates sorted at first; R1's top-p nearly always lies within them


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 switch a
    filter off.

    `max_tokens` None writes until the model stops or the context is full; the same `seed` gives the
    same text; `stop` strings end the answer and are not part of it. Raises LocalR1Error on a value
    out of range.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._require("temperature", 0 <= self.temperature <= 100, "from 0 (greedy) to 100")
        self._require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        self._require("top_k", self.top_k >= 0, "0 (off) or more")
        self._require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._require("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0")
        self._require("max_tokens", self.max_tokens is None or self.max_tokens > 0, "1 or more")
        self._require("seed", self.seed is None or self.seed >= 0, "0 or more")
        self._require("stop", all(self.stop), "strings with at least one character")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise LocalR1Error(f"{name} is {value!r}", f"{name} is {allowed}", USAGE)


class Sampler:
    """Draws token ids; `seen` collects the ids that the repetition penalty weighs down."""

    def __init__(self, params: SamplingParams, seen: Iterable[int] = ()) -> None:
        self.params = params
        self.seen = set(seen) if params.repetition_penalty != 1 else None
        self.random = np.random.default_rng(params.seed)

    def uniform(self) -> float:
        """The number that the next choice depends on; greedy choices take none from the seed."""
        return self.random.random() if self.params.temperature else 0.0

    def __call__(self, logits: np.ndarray) -> int:
        """Logits float32 `[vocab]` -> the next token id."""
        return self.chosen(self._penalised(logits) if self.seen else logits, self.uniform())

    def chosen(self, logits: np.ndarray, uniform: float) -> int:
        """The same of logits that bear the penalty already, by a number that was drawn before."""
        if self.params.temperature == 0:
            token = int(logits.argmax())
        else:
            ids, probs = self._candidates(logits)
            token = int(ids[np.searchsorted(probs.cumsum(), uniform * probs.sum())])
        if self.seen is not None:
            self.seen.add(token)
        return token

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        """CTRL's penalty (arXiv 1909.05858) as transformers applies it: divide above 0, multiply
        below.
        """
        logits = logits.copy()
        ids = np.fromiter(self.seen or (), int)
        old = logits[ids]
        penalty = self.params.repetition_penalty
        logits[ids] = np.where(old > 0, old / penalty, old * penalty)
        return logits

    def _candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids that the filters leave, best first, and their weights (not normalised)."""
        params = self.params
        scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
        probs = np.exp(scaled)
        limit = min(params.top_k or len(probs), len(probs))
        ids = _best(probs, min(limit, _FIRST_LOOK))
        total = probs.sum() if limit == len(probs) else probs[_best(probs, limit)].sum()
        if probs[ids].sum() < params.top_p * total or params.top_p == 1:
            ids = _best(probs, limit)
        weights = probs[ids]
        # The first candidates that together reach top_p, the one that crosses it included.
        keep = int(np.searchsorted(weights.cumsum(), params.top_p * total)) + 1
        keep = min(keep, int(np.count_nonzero(weights >= params.min_p * weights[0])))
        return ids[:keep], weights[:keep]


def _best(probs: np.ndarray, n: int) -> np.ndarray:
    """The ids of the `n` largest values, largest first; equal ones in the order of their ids."""
    if n < len(probs):
        ids = np.sort(np.argpartition(-probs, n - 1)[:n])
    else:
        ids = np.arange(len(probs))
    return ids[np.argsort(-probs[ids], kind="stable")]
