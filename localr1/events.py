"""What happens during a turn, as a stream of values: one source for terminal, pipe and JSON.

A `Session` yields them; the loader and the prompt reader yield the same `Progress`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """Work that can be counted: `stage` says what ("Reading the prompt"), in `unit`s of `total`."""

    stage: str
    done: int
    total: int
    unit: Literal["tokens", "bytes", "kernels", "steps"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What one turn cost. Token counts, seconds; speeds are derived."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # the part of the prompt that was already in the KV cache
    reasoning_tokens: int = 0
    completion_tokens: int = 0  # reasoning included, as in the OpenAI API
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    reasoning_seconds: float = 0.0

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens read per second, the cached ones not counted."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens written per second; the first one comes out of reading the prompt."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Repetition:
    """The model has written the same passage of `tokens` tokens several times in a row."""

    tokens: int
    in_reasoning: bool


FinishReason: TypeAlias = Literal["stop", "length", "context", "interrupted"]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a turn: why it ended and what it cost."""

    finish_reason: FinishReason
    stats: GenerationStats


Event: TypeAlias = Progress | Reasoning | Content | Repetition | Done
