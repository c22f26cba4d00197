"""One conversation with a model: text in, a stream of events out, a transcript always whole.

Knows nothing of screens, keys or files. What the model keeps in its KV cache is the engine's
business: the session renders the whole conversation each time.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from localr1.chat.stops import StopStrings
from localr1.chat.think import ThinkSplitter
from localr1.chat.transcript import Message, Transcript
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Content, Done, Event, FinishReason, GenerationStats, Progress, Reasoning
from localr1.models.tokenizer import Detokenizer

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams
    from localr1.models.template import ChatTemplate
    from localr1.models.tokenizer import Tokenizer


class Engine(Protocol):
    """What a session needs of an engine: ids in, ids out (the stop id left out)."""

    @property
    def stats(self) -> GenerationStats: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def max_context(self) -> int: ...
    def stream(self, ids: Sequence[int], params: SamplingParams) -> Iterator[Progress | int]: ...


class Model(Protocol):
    """What a session needs of a loaded model; `localr1.llm.LLM` is one."""

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


class Session:
    """A conversation. `reply` answers one message; `stop` (also from a signal handler) cuts it off.

    `stats` holds the figures of the running turn, or of the last one.
    """

    def __init__(
        self, llm: Model, system: str | None = None, params: SamplingParams | None = None
    ) -> None:
        self.llm = llm
        self.params = params if params is not None else llm.sampling
        self.transcript = Transcript(system=system)
        self._turn: _Turn | None = None
        self._running: Generator[Event] | None = None

    @property
    def stats(self) -> GenerationStats:
        """Figures of the running turn so far, or of the last one; zeros before the first."""
        return self._turn.stats() if self._turn else GenerationStats()

    def stop(self) -> None:
        """Ask the running reply to end at the next token. Only sets a flag: safe in a signal."""
        if self._turn is not None:
            self._turn.stop_asked = True

    def reply(self, text: str) -> Generator[Event]:
        """Answer `text`: yields `Progress`, `Reasoning` and `Content` as they come, then `Done`.

        However it ends (`stop`, a closed generator, an exception) the transcript afterwards holds
        either the whole turn, its answer marked `stopped`, or nothing of it if the model had not
        written anything.

        Raises:
            LocalR1Error: `text` is blank.
            ContextFull: from the engine, the conversation has no room left.
        """
        if not text.strip():
            raise LocalR1Error("the message is empty", "type a question", USAGE)
        if self._running is not None:
            self._running.close()  # an abandoned reply must not write to the transcript later
        text = text.encode("utf-8", "replace").decode()  # a terminal may send lone surrogates
        self._turn = _Turn(self.llm, text)
        self._running = self._run(self._turn)
        return self._running

    def _run(self, turn: _Turn) -> Generator[Event]:
        finish: FinishReason = "interrupted"
        try:
            finish = yield from turn.events(self.transcript.prompt(turn.question), self.params)
        finally:
            answer = turn.message(stopped=finish != "stop")
            if answer.content or answer.reasoning or finish == "stop":
                self.transcript.add_turn(Message("user", turn.question), answer)
        yield Done(finish, turn.stats())


class _Turn:
    """The state of one question and its answer while it is being written."""

    def __init__(self, llm: Model, question: str) -> None:
        self.question = question
        self.stop_asked = False
        self._llm = llm
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._tokens = 0
        self._reasoning_tokens = 0
        self._reasoning_began = 0.0
        self._reasoning_seconds = 0.0
        self._finished: GenerationStats | None = None

    def message(self, stopped: bool) -> Message:
        """The answer as far as it was shown."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        return Message("assistant", content, reasoning, stopped)

    def stats(self) -> GenerationStats:
        """The engine's figures once the turn has ended; until then what is counted here."""
        base = self._finished or GenerationStats(completion_tokens=self._tokens)
        return replace(
            base,
            reasoning_tokens=self._reasoning_tokens,
            reasoning_seconds=self._reasoning_seconds,
        )

    def events(
        self, messages: list[Message], params: SamplingParams
    ) -> Generator[Event, None, FinishReason]:
        """Everything but `Done`; returns why it ended."""
        prompt = self._llm.template.encode(messages, add_generation_prompt=True)
        splitter, stops = ThinkSplitter(prompt.in_reasoning), StopStrings(params.stop)
        detokenizer = Detokenizer(self._llm.tokenizer)
        stream = self._llm.engine.stream(prompt.ids, params)
        finish: FinishReason | None = None
        try:
            while finish is None:
                item = None if self.stop_asked else next(stream, None)
                if isinstance(item, Progress):
                    yield item
                    continue
                if item is None:
                    finish = "interrupted" if self.stop_asked else self._llm.engine.finish_reason
                    rest = "" if self.stop_asked else detokenizer.flush()  # half a character
                    pieces = splitter.push(rest) + splitter.flush()
                else:
                    before = splitter.in_reasoning
                    pieces = splitter.push(detokenizer.push(item))
                    self._count(before and splitter.in_reasoning)
                yield from self._shown(pieces, stops)
                if stops.hit:
                    finish = "stop"
            yield from self._shown([Content(stops.flush())], StopStrings(()))
        finally:
            if isinstance(stream, Generator):
                stream.close()
            if self._tokens or finish not in (None, "interrupted"):
                self._finished = self._llm.engine.stats  # else they are still the last turn's
        return finish

    def _shown(self, pieces: Sequence[Reasoning | Content], stops: StopStrings) -> Iterator[Event]:
        """Pass the pieces on, the answer up to a stop string; what is passed on is kept."""
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._reasoning.append(piece.text)
                yield piece
            elif text := stops.push(piece.text):
                self._content.append(text)
                yield Content(text)

    def _count(self, reasoning: bool) -> None:
        self._tokens += 1
        if not reasoning:
            return
        now = time.perf_counter()
        if self._reasoning_tokens == 0:
            self._reasoning_began = now
        self._reasoning_tokens += 1
        self._reasoning_seconds = now - self._reasoning_began
