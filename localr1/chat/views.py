"""What a view is, the two that need no terminal (pipe, JSON lines), and lines all of them share.

A view consumes the events of one turn and writes as they arrive. The terminal's is screen.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal, Protocol, TextIO

from localr1.chat.terminal import can_colour, clean, count, short
from localr1.events import Content, Done, Event, GenerationStats, Reasoning, Repetition

ThinkMode = Literal["show", "fold", "hide"]
THINK_MODES: tuple[ThinkMode, ...] = ("show", "fold", "hide")
ENDINGS = {
    "stop": "",
    "interrupted": "stopped",
    "length": "cut at the token limit",
    "context": "cut, the context is full",
}
DIM, RESET = "\x1b[2m", "\x1b[0m"
_NEARLY_FULL = 0.8


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
    """One JSON object per event and line, ASCII only, so no terminal can mistake it.

    `sample`: the number of the sample, noted in each line where there are several.
    """

    def __init__(self, out: TextIO, sample: int | None = None) -> None:
        self._out = out
        self._sample = {} if sample is None else {"sample": sample}

    def show(self, event: Event) -> None:
        """Write the event's fields under its lower-case name as `type`."""
        fields = {"type": type(event).__name__.lower(), **self._sample, **asdict(event)}
        if isinstance(event, Done):
            fields["stats"]["prefill_tps"] = event.stats.prefill_tps
            fields["stats"]["decode_tps"] = event.stats.decode_tps
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()


class PlainView:
    """The answer on `out` and nothing else there.

    Thoughts go to `err` if that is a terminal and they are not to be hidden, or if somebody wants
    them shown.
    """

    def __init__(self, out: TextIO, err: TextIO, think: ThinkMode = "fold") -> None:
        self._out = out
        self._err = err
        self._watched = think == "show" or (think == "fold" and err.isatty())
        self._dim, self._reset = (DIM, RESET) if can_colour(err) else ("", "")
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


def stats_line(done: Done, max_context: int) -> str:
    """`  611 tokens   11.9 tok/s   context 1.8k of 32k`, and why the turn ended if it was cut."""
    stats = done.stats
    used = stats.prompt_tokens + stats.completion_tokens
    full = f", {100 * used // max_context} % full" if used > _NEARLY_FULL * max_context else ""
    parts = [
        count(stats.completion_tokens, "token"),
        f"{stats.decode_tps:.1f} tok/s",
        f"context {short(used)} of {short(max_context)}{full}",
        ENDINGS[done.finish_reason],
    ]
    return "  " + "   ".join(part for part in parts if part)


def repetition_line(event: Repetition) -> str:
    """What goes wrong, and the keys that help."""
    if event.in_reasoning:
        return "The thought goes round in circles: Ctrl-\\ answers now, Ctrl-C stops"
    return "The answer repeats itself: Ctrl-C stops"
