"""What pipes and programs get, and that the model's text cannot command whoever reads it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable

import pytest

from localr1.chat import views
from localr1.chat.session import Session
from localr1.chat.terminal import clean, short
from localr1.chat.views import JsonView, PlainView, play, stats_line
from localr1.events import Content, Done, Event, GenerationStats, Progress, Reasoning
from localr1.progress import duration
from tests.chat.fake import SUM, FakeLLM

STATS = GenerationStats(1200, 0, 120, 611, 2.0, 50.0, 41.2)
HOSTILE = [
    "[/foo] [bold]list[int] = x[/bold]",
    "\x1b[31mred\x1b[0m",
    "\x1b]52;c;aGk=\x07clipboard",
    "\x1b[2J\x1b[1;1Hcursor",
    "\x9b31mC1\x90DCS\x9c",
    "\u202egnp.exe \u2066x\u2069 \u200f",
    "bell\a back\b return\r null\0 del\x7f",
]


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def show(view: views.View, events: Iterable[Event]) -> None:
    for event in events:
        view.show(event)


def turn(*extra: Event) -> list[Event]:
    return [*extra, Reasoning("Hm.\n"), Content("It is "), Content("933."), Done("stop", STATS)]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    harmless = clean(text)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", harmless
    )
    events = [Reasoning(text), Content(text), Done("stop", STATS)]
    out = Terminal()
    show(PlainView(out, out), events)
    shown = re.sub("\x1b\\[[02]m", "", out.getvalue())
    assert shown.count(harmless) == 2  # nothing lost, nothing obeyed
    assert "\x1b" not in shown
    out = io.StringIO()
    show(JsonView(out), events)
    assert json.loads(out.getvalue().splitlines()[1])["text"] == text
    assert re.fullmatch("[\x20-\x7e\n]*", out.getvalue())


def test_clean_keeps_what_is_text() -> None:
    kept = "tab\tline\n思考 ｜ éü 👩‍👩‍👧 \u200d \u00a0 [x]"
    assert clean(kept) == kept


def test_plain_view_writes_the_answer_only() -> None:
    out, err = io.StringIO(), io.StringIO()
    show(PlainView(out, err), turn(Progress("Reading the prompt", 5, 2000, "tokens")))
    assert out.getvalue() == "It is 933.\n"
    assert err.getvalue() == ""


def test_plain_view_shows_thoughts_to_whoever_watches_stderr() -> None:
    out, err = io.StringIO(), Terminal()
    show(PlainView(out, err), turn())
    assert out.getvalue() == "It is 933.\n"
    assert err.getvalue() == "\x1b[2mHm.\n\x1b[0m\n"


@pytest.mark.parametrize(("think", "shown"), [("show", "Hm."), ("hide", "")])
def test_plain_view_obeys(think: views.ThinkMode, shown: str) -> None:
    pipe, err = io.StringIO(), Terminal()
    show(PlainView(io.StringIO(), pipe, think), turn())
    assert pipe.getvalue().strip() == shown
    show(PlainView(io.StringIO(), err, think), turn())
    assert shown in err.getvalue() and bool(err.getvalue()) == bool(shown)


def test_plain_view_adds_no_second_newline() -> None:
    out = io.StringIO()
    show(PlainView(out, io.StringIO()), [Content("a\n"), Done("stop", STATS)])
    assert out.getvalue() == "a\n"


def test_json_lines() -> None:
    out = io.StringIO()
    done = play(JsonView(out), Session(FakeLLM([SUM])).reply("sum"))
    objects = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {event["type"] for event in objects} == {"reasoning", "content", "done"}
    assert "".join(e["text"] for e in objects if e["type"] == "content") == "It is **933**."
    assert objects[-1]["finish_reason"] == "stop"
    assert objects[-1]["stats"]["decode_tps"] == pytest.approx(done.stats.decode_tps)
    assert objects[-1]["stats"]["reasoning_tokens"] == SUM.index("</think>")


def test_figures() -> None:
    assert [short(n) for n in (950, 1843, 10240, 32768, 163840)] == [
        "950",
        "1.8k",
        "10k",
        "32k",
        "160k",
    ]
    assert [duration(s) for s in (0, 0.42, 3.4, 59.7, 91, 7530)] == [
        "0.0 s",
        "0.4 s",
        "3 s",
        "1 min 0 s",
        "1 min 31 s",
        "2 h 5 min",
    ]
    line = stats_line(Done("length", GenerationStats(10, 0, 0, 1, 0.1, 0.0, 0.0)), 2048)
    assert line == "  1 token   0.0 tok/s   context 11 of 2k   cut at the token limit"
    line = stats_line(Done("stop", GenerationStats(1000, 0, 0, 801, 0.1, 80.0, 0.0)), 2048)
    assert line == "  801 tokens   10.0 tok/s   context 1.8k of 2k, 87 % full"
