"""One conversation with a model: text in, a stream of events out, a transcript always whole.

Knows nothing of screens, keys or files. What the model keeps in its KV cache is the engine's
business: the session renders the whole conversation each time.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from localr1.chat.thinking import Thinking
from localr1.chat.transcript import Message, Transcript
from localr1.chat.turn import Model, Turn
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Done, Event, FinishReason, GenerationStats

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams


class Session:
    """A conversation. `reply` answers one message; `stop` (also from a signal handler) cuts it off.

    `stats` holds the figures of the running turn, or of the last one.
    """

    def __init__(
        self,
        llm: Model,
        system: str | None = None,
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        self.llm = llm
        self.params = params if params is not None else llm.sampling
        self.thinking = thinking or Thinking()
        self.transcript = Transcript(system=system)
        self._turn: Turn | None = None
        self._running: Generator[Event] | None = None

    @property
    def stats(self) -> GenerationStats:
        """Figures of the running turn so far, or of the last one; zeros before the first."""
        return self._turn.stats() if self._turn else GenerationStats()

    def stop(self) -> None:
        """Ask the running reply to end at the next token. Only sets a flag: safe in a signal."""
        if self._turn is not None:
            self._turn.stop_asked = True

    def answer_now(self) -> None:
        """Ask the running reply to close its thought at the next token; in an answer, nothing."""
        if self._turn is not None:
            self._turn.answer_asked = True

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
        self._turn = Turn(self.llm, text, self.params, self.thinking)
        self._running = self._run(self._turn)
        return self._running

    def _run(self, turn: Turn) -> Generator[Event]:
        finish: FinishReason = "interrupted"
        try:
            finish = yield from turn.events(self.transcript.prompt(turn.question))
        finally:
            answer = turn.message(stopped=finish != "stop")
            if answer.content or answer.reasoning or finish == "stop":
                self.transcript.add_turn(Message("user", turn.question), answer)
        yield Done(finish, turn.stats())
