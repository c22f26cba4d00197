"""A model that plays back scripts: the parts of an LLM that `Session` uses, with no weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from localr1.engine.sampler import SamplingParams
from localr1.events import FinishReason, GenerationStats, Progress


class FakeTokenizer:
    """Every text (or bytes, for parts of a character) is one token."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []

    def id(self, token: str | bytes) -> int:
        raw = token.encode() if isinstance(token, str) else token
        if raw not in self.tokens:
            self.tokens.append(raw)
        return self.tokens.index(raw)

    def encode(self, text: str) -> list[int]:
        return [self.id(text)]

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token]


class FakeTemplate:
    """One id per message; remembers what it was asked to render."""

    source = "fake"
    reasons = True

    def __init__(self, in_reasoning: bool, tokenizer: FakeTokenizer) -> None:
        self.in_reasoning = in_reasoning
        self.think_open_ids = tokenizer.encode("<think>")
        self.think_close_ids = tokenizer.encode("</think>")
        self.rendered: list[list[tuple[str, str]]] = []

    def encode(self, messages: Sequence, add_generation_prompt: bool = True) -> SimpleNamespace:
        assert all(not message.reasoning for message in messages)
        if add_generation_prompt:
            self.rendered.append([(message.role, message.content) for message in messages])
        return SimpleNamespace(ids=list(range(len(messages))), in_reasoning=self.in_reasoning)


class FakeEngine:
    """Plays the next script.

    Its items: the text of a token, `Progress`, an exception to raise, a `Finish`, or seconds to
    wait. `delay` seconds pass before each item; `closed` counts streams that were ended early.
    """

    def __init__(self, scripts: Sequence[Sequence], tokenizer: FakeTokenizer, delay: float) -> None:
        self.scripts = list(scripts)
        self.tokenizer = tokenizer
        self.delay = delay
        self.max_context = 2048
        self.position = 0
        self.stats = GenerationStats()
        self.finish_reason: FinishReason = "stop"
        self.closed = 0
        self.cached = 0  # tokens of any prompt that it claims to know
        self.params: list[object] = []
        self.read: list[list[int]] = []

    def stream(self, ids: Sequence[int], params: object) -> Iterator[Progress | int]:
        self.read.append(list(ids))
        self.params.append(params)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        written, began = 0, time.perf_counter()
        try:
            for item in script:
                time.sleep(self.delay)
                if isinstance(item, float):
                    time.sleep(item)
                    continue
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Progress):
                    yield item
                    continue
                if isinstance(item, Finish):
                    self.finish_reason = item.reason
                    return
                written += 1
                self.stats = GenerationStats(
                    prompt_tokens=len(ids),
                    completion_tokens=written,
                    prefill_seconds=0.01,
                    decode_seconds=max(time.perf_counter() - began, 1e-6),
                )
                yield self.tokenizer.id(item)
            self.finish_reason = "stop"
        except GeneratorExit:
            self.closed += 1
            raise

    def known(self, ids: Sequence[int]) -> int:
        return min(self.cached, len(ids))

    def prefill(self, ids: Sequence[int]) -> Iterator[None]:
        for _ in ids:
            time.sleep(self.delay)
            yield


@dataclass(frozen=True)
class Finish:
    """A script's item: end here, for this reason."""

    reason: FinishReason


@dataclass
class FakeLLM:
    """`FakeLLM([["Hm", "</think>", "\\n\\n", "933"], ...])`; the last script repeats."""

    scripts: Sequence[Sequence]
    in_reasoning: bool = True
    delay: float = 0.0
    stop: tuple[str, ...] = ()
    name: str = "fake-r1"
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)

    def __post_init__(self) -> None:
        self.engine = FakeEngine(self.scripts, self.tokenizer, self.delay)
        self.template = FakeTemplate(self.in_reasoning, self.tokenizer)
        self.sampling = SamplingParams(stop=self.stop)


SUM = ["347", " + ", "586", "\n", "= 933", "\n", "</think>", "\n\n", "It is ", "**933**", "."]
