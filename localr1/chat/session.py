"""One conversation with a model: text in, a stream of events out, a transcript always whole.

Knows nothing of screens, keys or files. What the model keeps in its KV cache is the engine's
business: the session renders the whole conversation each time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING

from localr1.chat.thinking import Thinking
from localr1.chat.transcript import Message, Transcript
from localr1.chat.turn import Model, Turn
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Done, Event, FinishReason, GenerationStats

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams

_SETTLE_TOKENS = 256  # read at once while settling: what an interrupt loses at most


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

    def use(self, load: Callable[[], Session]) -> None:
        """Go on with the model of the session that `load` makes, and with how that one samples.

        The model in use is let go first: two at once may not fit. When `load` fails there is none,
        and `use` must be called again.
        """
        self._turn = self._running = None
        vars(self).pop("llm", None)  # gone already where another model failed to load
        other = load()
        self.llm, self.params = other.llm, other.params

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

    def reply(self, text: str, again: bool = False) -> Generator[Event]:
        """Answer `text`: yields `Progress`, `Reasoning` and `Content` as they come, then `Done`.

        However it ends (`stop`, a closed generator, an exception) the transcript afterwards holds
        either the whole turn, its answer marked `stopped`, or nothing of it if the model had not
        written anything. With `again` the turn takes the place of the last one.

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
        self._running = self._run(self._turn, again)
        return self._running

    def retry(self) -> Generator[Event]:
        """Answer the last question again. The old answer stays until the new one has a beginning.

        Raises:
            LocalR1Error: there is no question yet.
        """
        if not self.transcript.messages:
            raise LocalR1Error("there is no question to ask again", "type one", USAGE)
        return self.reply(self.transcript.messages[-2].content, again=True)

    def settled_ids(self) -> list[int]:
        """The tokens that any next prompt will begin with; none before the first turn."""
        if not self.transcript.messages:
            return []
        said = self.transcript.said()
        prompts = (said, self.transcript.prompt("a"), self.transcript.prompt("b"))
        encode = self.llm.template.encode
        settled, one, other = (encode(m, add_generation_prompt=False).ids for m in prompts)
        if one[: len(settled)] == settled:
            return settled
        # Qwen3's template gives the last answer an empty thought, for as long as it is the last
        pairs = zip(one, other, strict=False)
        return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def settle(self) -> Iterator[None]:
        """Re-read the last answer without its thought, so that the next turn starts at once.

        For the time in which nothing else happens: yields between chunks, and between layers of
        large ones. Abandoned at any point it loses at most a chunk.
        """
        engine, ids = self.llm.engine, self.settled_ids()
        if len(ids) >= engine.max_context:
            return
        known = engine.known(ids)
        while known < len(ids):
            known = min(known + _SETTLE_TOKENS, len(ids))
            for _ in engine.prefill(ids[:known]):
                yield

    def _run(self, turn: Turn, again: bool) -> Generator[Event]:
        finish: FinishReason = "interrupted"
        try:
            finish = yield from turn.events(self.transcript.prompt(turn.question, again))
        finally:
            answer = turn.message(stopped=finish != "stop")
            if answer.content or answer.reasoning or finish == "stop":
                self.transcript.add_turn(Message("user", turn.question), answer, again)
        yield Done(finish, turn.stats())
