"""Three ways to show a turn: on a terminal, in a pipe, as JSON lines. One source: the events.

A view writes as events arrive and never redraws what it has written. Model text is data: it passes
through `clean`, never through a markup parser.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Literal, Protocol, TextIO

from localr1.chat.terminal import (
    can_colour,
    can_move_cursor,
    clean,
    columns,
    count,
    duration,
    short,
)
from localr1.events import Content, Done, Event, GenerationStats, Progress, Reasoning, Repetition

ThinkMode = Literal["show", "hide"]
ENDINGS = {
    "stop": "",
    "interrupted": "stopped",
    "length": "cut at the token limit",
    "context": "cut, the context is full",
}
_DIM, _RESET, _ERASE_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
_LONG_PROMPT = 256  # tokens; shorter ones are read before a progress line could be
_REDRAW_SECONDS = 0.1


class View(Protocol):
    """Consumes the events of one turn."""

    def show(self, event: Event) -> None: ...


def play(view: View, events: Iterable[Event]) -> Done:
    """Show the events of one turn to its end; returns the last one."""
    done = Done("interrupted", GenerationStats())
    for event in events:
        view.show(event)
        if isinstance(event, Done):
            done = event
    return done


class JsonView:
    """One JSON object per event and line, ASCII only, so no terminal can mistake it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, event: Event) -> None:
        """Write the event's fields under its lower-case name as `type`."""
        fields = {"type": type(event).__name__.lower(), **asdict(event)}
        if isinstance(event, Done):
            fields["stats"]["prefill_tps"] = event.stats.prefill_tps
            fields["stats"]["decode_tps"] = event.stats.decode_tps
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()


class PlainView:
    """The answer on `out` and nothing else there; thoughts on `err` only if that is a terminal."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._watched = err.isatty()
        self._dim, self._reset = (_DIM, _RESET) if can_colour(err) else ("", "")
        self._ends_line = True
        self._thinking = False

    def show(self, event: Event) -> None:
        """Write answer text at once; end the answer with a newline."""
        if isinstance(event, Reasoning):
            if self._watched:
                self._err.write(f"{self._dim}{clean(event.text)}{self._reset}")
                self._err.flush()
                self._thinking = True
            return
        if self._thinking and isinstance(event, Content | Done):
            self._err.write("\n")
            self._err.flush()
            self._thinking = False
        if isinstance(event, Content):
            text = clean(event.text)
            self._ends_line = text.endswith("\n") if text else self._ends_line
            self._out.write(text)
        elif isinstance(event, Done) and not self._ends_line:
            self._out.write("\n")
        self._out.flush()


class RichView:
    """A terminal: dim thought, a line that sums it up, the answer, a line of figures.

    Everything but the answer goes to `chrome`, which is the same terminal; with `run` it is stderr.
    `stats` gives the figures of the running turn, so that nothing is counted twice or guessed.
    """

    def __init__(
        self,
        out: TextIO,
        chrome: TextIO,
        stats: Callable[[], GenerationStats],
        max_context: int,
        think: ThinkMode = "show",
    ) -> None:
        self._out = out
        self._chrome = chrome
        self._stats = stats
        self._max_context = max_context
        self._think = think
        self._dim, self._reset = (_DIM, _RESET) if can_colour(chrome) else ("", "")
        self._live = can_move_cursor(chrome)
        self._status = ""  # the line that is on the screen now and will be erased
        self._drawn_at = -_REDRAW_SECONDS
        self._stage: tuple[str, float, int] | None = None  # name, when it began, done by then
        self._phase: Literal["start", "thought", "answer"] = "start"
        self._ends_line = True

    def show(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Progress):
            self._show_progress(event)
        elif isinstance(event, Reasoning):
            self._show_reasoning(event.text)
        elif isinstance(event, Content):
            self._show_content(event.text)
        elif isinstance(event, Repetition):
            self._show_repetition(event)
        else:
            self._show_done(event)

    def _show_progress(self, event: Progress) -> None:
        now = time.monotonic()
        if self._stage is None or self._stage[0] != event.stage:
            self._stage = (event.stage, now, event.done)
        _, began, done_then = self._stage
        if event.total - done_then < _LONG_PROMPT or event.done >= event.total:
            self._erase()
            return
        share = 100 * event.done // event.total
        line = f"{event.stage}   {event.total:,} {event.unit}   {share} %"
        if event.done > done_then:
            left = (now - began) / (event.done - done_then) * (event.total - event.done)
            line += f"   {duration(left)} left"
        self._draw(line)

    def _show_reasoning(self, text: str) -> None:
        if self._phase == "start":
            self._erase()
            self._phase = "thought"
            if self._think == "show":
                self._line("Thinking")
        if self._think == "show":
            self._write(self._chrome, clean(text), dim=True)
            return
        stats = self._stats()
        speed = stats.reasoning_tokens / max(stats.reasoning_seconds, 1e-3)
        self._draw(
            f"Thinking {duration(stats.reasoning_seconds)}   "
            f"{count(stats.reasoning_tokens, 'token')}   {speed:.1f} tok/s   Ctrl-C stops"
        )

    def _show_content(self, text: str) -> None:
        if self._phase != "answer":
            self._end_thought()
            self._erase()
            self._phase = "answer"
        self._write(self._out, clean(text))

    def _show_repetition(self, event: Repetition) -> None:
        self._erase()
        if not self._ends_line:
            self._write(self._chrome, "\n")
        self._line(repetition_line(event))

    def _show_done(self, event: Done) -> None:
        self._end_thought()
        self._erase()
        if not self._ends_line:
            self._write(self._out, "\n")
        self._line(stats_line(event, self._max_context))

    def _end_thought(self) -> None:
        """Close the thought with its one-line summary."""
        if self._phase != "thought":
            return
        self._phase = "start"
        self._erase()
        if not self._ends_line:
            self._write(self._chrome, "\n")
        stats = self._stats()
        tokens = count(stats.reasoning_tokens, "token")
        self._line(f"Thought for {duration(stats.reasoning_seconds)}, {tokens}")

    def _draw(self, line: str) -> None:
        """Put a line on the screen that the next one replaces. Terminals that cannot get none."""
        now = time.monotonic()
        if not self._live or now - self._drawn_at < _REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._status = line[: columns(self._chrome) - 1]  # a wrapped line could not be erased
        self._chrome.write(f"{_ERASE_LINE}{self._dim}{self._status}{self._reset}")
        self._chrome.flush()

    def _erase(self) -> None:
        if self._status:
            self._status = ""
            self._chrome.write(_ERASE_LINE)
            self._chrome.flush()

    def _line(self, text: str) -> None:
        self._write(self._chrome, text, dim=True)
        self._write(self._chrome, "\n")

    def _write(self, stream: TextIO, text: str, dim: bool = False) -> None:
        """Write text at once. Each piece carries its own style, so an abort leaves no colour."""
        if not text:
            return
        self._ends_line = text.endswith("\n")
        stream.write(f"{self._dim}{text}{self._reset}" if dim else text)
        stream.flush()


def stats_line(done: Done, max_context: int) -> str:
    """`  611 tokens   11.9 tok/s   context 1.8k of 32k`, and why the turn ended if it was cut."""
    stats = done.stats
    used = stats.prompt_tokens + stats.completion_tokens
    parts = [
        count(stats.completion_tokens, "token"),
        f"{stats.decode_tps:.1f} tok/s",
        f"context {short(used)} of {short(max_context)}",
        ENDINGS[done.finish_reason],
    ]
    return "  " + "   ".join(part for part in parts if part)


def repetition_line(event: Repetition) -> str:
    """What goes wrong, and the keys that help."""
    if event.in_reasoning:
        return "The thought goes round in circles: Ctrl-\\ answers now, Ctrl-C stops"
    return "The answer repeats itself: Ctrl-C stops"
