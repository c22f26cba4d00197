"""One question and its answer while it is being written: tokens in, events out.

Words are put into the model's mouth without the engine knowing: the stream of tokens is closed and
another one opened with what is written so far and the words behind it. The engine's cache holds all
but the words, so only they are read.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from localr1.chat.stops import StopStrings
from localr1.chat.think import CLOSE, ThinkSplitter
from localr1.chat.thinking import ENOUGH, WAIT, RepetitionDetector, Thinking
from localr1.chat.transcript import Message
from localr1.events import (
    Content,
    Event,
    FinishReason,
    GenerationStats,
    Progress,
    Reasoning,
    Repetition,
)
from localr1.models.tokenizer import Detokenizer

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams
    from localr1.models.template import ChatTemplate, Prompt
    from localr1.models.tokenizer import Tokenizer

_Segment = Generator[Event, None, tuple[FinishReason | None, list[int]]]


class Engine(Protocol):
    """What a conversation needs of an engine: ids in, ids out (the stop id left out).

    `known` tells how many tokens are in its cache; `prefill` reads tokens into it, in pieces.
    """

    @property
    def stats(self) -> GenerationStats: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def max_context(self) -> int: ...
    def known(self, ids: Sequence[int]) -> int: ...
    def stream(self, ids: Sequence[int], params: SamplingParams) -> Iterator[Progress | int]: ...
    def prefill(self, ids: Sequence[int]) -> Iterator[object]: ...


class Model(Protocol):
    """What a conversation needs of a loaded model; `localr1.llm.LLM` is one."""

    @property
    def name(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def sampling(self) -> SamplingParams: ...


class Turn:
    """`events` yields everything but `Done`. `stop_asked` ends it at the next token,
    `answer_asked` closes the thought there; both are plain flags, safe to set in a signal handler.
    """

    def __init__(self, llm: Model, question: str, params: SamplingParams, thinking: Thinking):
        self.question = question
        self.stop_asked = False
        self.answer_asked = False
        self._llm, self._params, self._thinking = llm, params, thinking
        self._more = thinking.more
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._written: list[int] = []
        self._detokenizer = Detokenizer(llm.tokenizer)
        self._splitter = ThinkSplitter(False)
        self._stops = StopStrings(params.stop)
        self._repetition = RepetitionDetector()
        self._reopened = False  # the model has just closed its thought and is to go on with it
        self._reasoning_tokens = 0
        self._reasoning_began = 0.0
        self._reasoning_seconds = 0.0
        self._finished: GenerationStats | None = None

    def message(self, stopped: bool) -> Message:
        """The answer as far as it was shown."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        return Message("assistant", content, reasoning, stopped)

    def stats(self) -> GenerationStats:
        """The engine's figures as far as a stream of it has ended; the rest is counted here."""
        return replace(
            self._finished or GenerationStats(),
            completion_tokens=len(self._written),
            reasoning_tokens=self._reasoning_tokens,
            reasoning_seconds=self._reasoning_seconds,
        )

    def events(self, messages: list[Message]) -> Generator[Event, None, FinishReason]:
        """Everything but `Done`; returns why it ended."""
        prompt = self._llm.template.encode(messages, add_generation_prompt=True)
        self._splitter = ThinkSplitter(prompt.in_reasoning, self._thinks(prompt))
        finish: FinishReason | None = None
        words = self._closed_thought(prompt) if self._thinking.budget == 0 else []
        while finish is None:
            for token in words:
                yield from self._take(token)
            finish, words = yield from self._segment(prompt)
        rest = "" if self.stop_asked else self._detokenizer.flush()  # half a character
        yield from self._shown(self._splitter.push(rest) + self._splitter.flush())
        if not self._stops.hit and (held := self._stops.flush()):
            self._content.append(held)
            yield Content(held)
        return finish

    def _thinks(self, prompt: Prompt) -> bool:
        """Whether a tag that the model begins with can be meant as one."""
        template = self._llm.template
        return prompt.in_reasoning or template.reasons or len(template.think_open_ids) == 1

    def _segment(self, prompt: Prompt) -> _Segment:
        """Write until the end, or until words must be put in: returns why, or the words."""
        engine, before = self._llm.engine, len(self._written)
        if self._finished and before + len(prompt.ids) >= engine.max_context:
            return "context", []
        limit = self._params.max_tokens
        if limit is not None and before >= limit:  # words may have gone beyond it
            return "length", []
        stream = engine.stream([*prompt.ids, *self._written], self._rest_of_params(before))
        began, sampled = self._finished, False
        try:
            while not self.stop_asked and not self._stops.hit:
                item = next(stream, None)
                if isinstance(item, Progress):
                    yield item
                    continue
                sampled = True
                if item is None:
                    ended_inside = engine.finish_reason == "stop" and self._splitter.in_reasoning
                    if ended_inside and self._more:
                        return None, self._wait()
                    return engine.finish_reason, []
                yield from self._take(item)
                if words := self._words():
                    return None, words
            return ("stop" if self._stops.hit else "interrupted"), []
        finally:
            if isinstance(stream, Generator):
                stream.close()
            if sampled:  # else the engine's figures are still those of another turn
                self._finished = _sum(began, engine.stats, len(prompt.ids))

    def _rest_of_params(self, written: int) -> SamplingParams:
        """The parameters for what is still to be written."""
        limit, seed = self._params.max_tokens, self._params.seed
        if not written:
            return self._params
        return replace(
            self._params,
            max_tokens=None if limit is None else limit - written,
            seed=None if seed is None else seed + written,  # else the same numbers came again
        )

    def _take(self, token: int) -> Iterator[Event]:
        """Write one token down; yield what it shows."""
        before = self._splitter.in_reasoning
        self._written.append(token)
        pieces = self._splitter.push(self._detokenizer.push(token))
        self._count(before and self._splitter.in_reasoning)
        if self._more and before and not self._splitter.in_reasoning:
            pieces = [piece for piece in pieces if isinstance(piece, Reasoning)]
            self._forget_tag()
            self._splitter.reopen()
            self._reopened = True
        yield from self._shown(pieces)
        if (length := self._repetition.push(token)) is not None:
            yield Repetition(length, self._splitter.in_reasoning)

    def _words(self) -> list[int]:
        """What to put into the model's mouth at this point; mostly nothing."""
        if self._reopened:
            return self._wait()
        limit = self._thinking.budget
        spent = limit is not None and self._reasoning_tokens >= limit
        if not self._splitter.in_reasoning or not (spent or self.answer_asked):
            return []
        self._more = 0
        return self._encode(ENOUGH, self._llm.template.think_close_ids, "\n\n")

    def _wait(self) -> list[int]:
        self._reopened = False
        self._more -= 1
        new_line = "" if "".join(self._reasoning[-1:]).endswith("\n") else "\n"
        return self._encode(new_line + WAIT)

    def _closed_thought(self, prompt: Prompt) -> list[int]:
        """A thought that is over before it began, for models that would begin with one."""
        self._more = 0
        template = self._llm.template
        if prompt.in_reasoning:
            return self._encode("\n", template.think_close_ids, "\n\n")
        if template.reasons:
            return self._encode(template.think_open_ids, "\n\n", template.think_close_ids, "\n\n")
        return []

    def _encode(self, *parts: str | list[int]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self._llm.tokenizer.encode(part) if isinstance(part, str) else part
        return ids

    def _forget_tag(self) -> None:
        """Drop the tokens that spell the closing tag, and what came behind it in the last one."""
        token_bytes = self._llm.tokenizer.token_bytes
        tail = [len(token_bytes(token)) for token in self._written[-len(CLOSE) :]]
        text = b"".join(map(token_bytes, self._written[-len(CLOSE) :]))
        surplus = len(text) - text.rindex(CLOSE.encode())
        while surplus > 0:
            surplus -= tail.pop()
            self._written.pop()

    def _shown(self, pieces: Sequence[Reasoning | Content]) -> Iterator[Event]:
        """Pass the pieces on, the answer up to a stop string; what is passed on is kept."""
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
                yield piece
            elif text := self._stops.push(piece.text):
                self._content.append(text)
                yield Content(text)

    def _count(self, reasoning: bool) -> None:
        if not reasoning or self._thinking.budget == 0:
            return
        now = time.perf_counter()
        if self._reasoning_tokens == 0:
            self._reasoning_began = now
        self._reasoning_tokens += 1
        self._reasoning_seconds = now - self._reasoning_began


def _sum(before: GenerationStats | None, now: GenerationStats, prompt: int) -> GenerationStats:
    """The figures of a turn after another stream of it; its first one read the prompt."""
    if before is None:
        cached = min(now.cached_tokens, prompt)
        return replace(now, prompt_tokens=prompt, cached_tokens=cached)
    seconds = before.decode_seconds + now.prefill_seconds + now.decode_seconds
    return replace(before, decode_seconds=seconds)
