"""A turn on a terminal: a window on the thought, one line that is left of it, the answer, figures.

Only the window and the progress line are drawn again, in place; what has scrolled up never changes.
Model text is data: it passes through `clean`, never through a markup parser.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, TextIO

from localr1.chat.live import LiveLines
from localr1.chat.markdown import MarkdownStream
from localr1.chat.terminal import can_colour, can_move_cursor, clean, columns, count
from localr1.chat.views import DIM, RESET, ThinkMode, repetition_line, stats_line
from localr1.chat.wrap import WordWrap
from localr1.events import Content, Done, Event, GenerationStats, Progress, Reasoning, Repetition
from localr1.progress import duration

_LONG_PROMPT = 256  # tokens; shorter ones are read before a progress line could be
_WINDOW_LINES = 5
_BELL_SECONDS = 10.0  # after so long nobody is expected to be watching
KEYS = "Ctrl-C stop, Ctrl-\\ answer now"


class RichView:
    """Everything but the answer goes to `chrome`, which is the same terminal as `out`; with `run`
    it is stderr. `stats` gives the figures of the running turn, so that nothing is counted twice.
    """

    def __init__(
        self,
        out: TextIO,
        chrome: TextIO,
        stats: Callable[[], GenerationStats],
        max_context: int,
        think: ThinkMode = "fold",
    ) -> None:
        self._out, self._chrome = out, chrome
        self._stats, self._max_context = stats, max_context
        self._think = think
        self._dim, self._reset = (DIM, RESET) if can_colour(chrome) else ("", "")
        self._live = LiveLines(chrome)
        self._window = _Window(chrome)
        self._markdown = self._new_markdown()
        self._began = time.monotonic()
        self._stage: tuple[str, float, int] | None = None  # name, when it began, done by then
        self._phase: Literal["start", "thought", "answer"] = "start"
        self._ends_line = True

    def show(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Progress):
            self._show_progress(event)
        elif isinstance(event, Reasoning):
            self._show_reasoning(clean(event.text))
        elif isinstance(event, Content):
            self._show_content(clean(event.text))
        elif isinstance(event, Repetition):
            self._show_repetition(event)
        else:
            self._show_done(event)
        self._out.flush()

    def _show_progress(self, event: Progress) -> None:
        now = time.monotonic()
        if self._stage is None or self._stage[0] != event.stage:
            self._stage = (event.stage, now, event.done)
        _, began, done_then = self._stage
        if event.total - done_then < _LONG_PROMPT or event.done >= event.total:
            self._live.erase()
            return
        if not self._live.due():
            return
        share = 100 * event.done // event.total
        line = f"{event.stage}   {event.total:,} {event.unit}   {share} %"
        if event.done > done_then:
            left = (now - began) / (event.done - done_then) * (event.total - event.done)
            line += f"   {duration(left)} left"
        self._live.draw([line])

    def _show_reasoning(self, text: str) -> None:
        if self._phase == "start":
            self._live.erase()
            self._phase = "thought"
            if self._think == "show" or not self._live.can_draw:
                self._line("Thinking")
        if self._think == "show":
            self._write(self._chrome, f"{self._dim}{text}{self._reset}", text.endswith("\n"))
            return
        self._window.add(text)
        if self._live.due():
            window = self._window.lines() if self._think == "fold" else []
            self._live.draw([self._status(), *window])

    def _status(self) -> str:
        stats = self._stats()
        tokens, seconds = stats.reasoning_tokens, stats.reasoning_seconds
        figures = f"Thinking {duration(seconds)}   {count(tokens, 'token')}"
        if tokens > 1 and seconds > 0:
            figures += f"   {(tokens - 1) / seconds:.1f} tok/s"
        room = columns(self._chrome) - len(figures) - 1
        return figures + (KEYS.rjust(min(room, 40)) if room > len(KEYS) + 2 else "")

    def _show_content(self, text: str) -> None:
        if self._phase != "answer":
            self._end_thought()
            self._live.erase()
            self._phase = "answer"
        if self._markdown:
            self._markdown.push(text)
        else:
            self._write(self._out, text)

    def _show_repetition(self, event: Repetition) -> None:
        if self._markdown:
            self._markdown.flush()
            self._markdown = self._new_markdown()
        self._end_line()
        self._line(repetition_line(event))

    def _show_done(self, event: Done) -> None:
        self._end_thought()
        self._live.erase()
        if self._markdown:
            self._markdown.flush()
        self._end_line()
        self._line(stats_line(event, self._max_context))
        if time.monotonic() - self._began > _BELL_SECONDS and can_move_cursor(self._chrome):
            self._chrome.write("\a")
            self._chrome.flush()

    def _new_markdown(self) -> MarkdownStream | None:
        """At the beginning of a line; None without styles, when Markdown is its own best sign."""
        if not can_colour(self._out):
            return None
        return MarkdownStream(lambda text: self._write(self._out, text), lambda: columns(self._out))

    def _end_thought(self) -> None:
        """Fold the thought to one line."""
        if self._phase != "thought":
            return
        self._phase = "start"
        self._end_line()
        stats = self._stats()
        tokens = count(stats.reasoning_tokens, "token")
        self._line(f"Thought for {duration(stats.reasoning_seconds)}, {tokens}")

    def _end_line(self) -> None:
        self._out.flush()  # before the other stream goes on
        self._live.erase()
        if not self._ends_line:
            self._write(self._chrome, "\n")

    def _line(self, text: str) -> None:
        self._write(self._chrome, f"{self._dim}{text}{self._reset}\n")
        self._chrome.flush()

    def _write(self, stream: TextIO, text: str, ends_line: bool | None = None) -> None:
        """Each piece carries its own style, so an abort leaves no colour."""
        if text:
            self._ends_line = text.endswith("\n") if ends_line is None else ends_line
            stream.write(text)


class _Window:
    """The last lines of a text that grows, broken to fit the terminal as it is when they come."""

    def __init__(self, stream: TextIO) -> None:
        self._lines: deque[str] = deque([""], maxlen=_WINDOW_LINES)
        self._wrap = WordWrap(self._write, lambda: min(columns(stream), 80) - 3)

    def add(self, text: str) -> None:
        for n, line in enumerate(text.split("\n")):
            if n and self._lines[-1]:  # blank lines would take room for nothing
                self._wrap.line_break()
            self._wrap.add(line)

    def lines(self) -> list[str]:
        return [f"  {line}" for line in self._lines if line]

    def _write(self, text: str) -> None:
        first, *more = text.split("\n")
        self._lines[-1] += first
        self._lines.extend(more)
