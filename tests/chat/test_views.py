"""What each view writes, and that the model's text cannot command the terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable

import pyte
import pytest

from localr1.chat import views
from localr1.chat.session import Session
from localr1.chat.terminal import clean, duration, short
from localr1.chat.views import JsonView, PlainView, RichView, play, stats_line
from localr1.events import Content, Done, Event, GenerationStats, Progress, Reasoning
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


def rich(out: io.StringIO, think: views.ThinkMode = "show") -> RichView:
    return RichView(out, out, lambda: STATS, 32768, think)


def screen(raw: str, width: int = 80) -> list[str]:
    """The lines a terminal shows after `raw`, trailing empty ones left out."""
    display = pyte.Screen(width, 24)
    pyte.Stream(display).feed(raw.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in display.display).rstrip().split("\n")


def show(view: views.View, events: Iterable[Event]) -> None:
    for event in events:
        view.show(event)


def turn(*extra: Event) -> list[Event]:
    return [*extra, Reasoning("Hm.\n"), Content("It is "), Content("933."), Done("stop", STATS)]


def test_rich_view_of_a_turn() -> None:
    out = Terminal()
    show(rich(out), turn())
    assert screen(out.getvalue()) == [
        "Thinking",
        "Hm.",
        "Thought for 41 s, 120 tokens",
        "It is 933.",
        "  611 tokens   12.2 tok/s   context 1.8k of 32k",
    ]
    assert "\x1b[2mHm.\n\x1b[0m" in out.getvalue()  # the thought is dim, the answer is not
    assert "It is 933.\n" in out.getvalue()


def test_hidden_thoughts_leave_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_REDRAW_SECONDS", 0)
    out = Terminal()
    view = rich(out, "hide")
    show(view, [Reasoning("a secret"), Reasoning(" thought")])
    assert screen(out.getvalue()) == ["Thinking 41 s   120 tokens   2.9 tok/s   Ctrl-C stops"]
    show(view, [Content("933."), Done("stop", STATS)])
    assert screen(out.getvalue())[:2] == ["Thought for 41 s, 120 tokens", "933."]
    assert "secret" not in out.getvalue()


def test_a_narrow_terminal_keeps_the_live_line_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_REDRAW_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    show(rich(out, "hide"), [Reasoning("a")] * 5 + [Content("b"), Done("stop", STATS)])
    assert screen(out.getvalue(), 20)[0] == "Thought for 41 s, 12"  # no trace of the live line


def test_progress_of_a_long_prompt_is_shown_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_REDRAW_SECONDS", 0)
    monkeypatch.setattr(views.time, "monotonic", iter(float(i) for i in range(100)).__next__)
    out = Terminal()
    view = rich(out)
    reading = [Progress("Reading the prompt", done, 1204, "tokens") for done in (301, 602)]
    show(view, reading)
    assert re.fullmatch(
        r"Reading the prompt   1,204 tokens   50 %   \d s left", screen(out.getvalue())[0]
    )
    show(view, turn(Progress("Reading the prompt", 1204, 1204, "tokens")))
    assert screen(out.getvalue())[0] == "Thinking"


def test_progress_of_a_short_prompt_is_not_shown() -> None:
    out = Terminal()
    show(rich(out), [Progress("Reading the prompt", 5, 20, "tokens")])
    assert out.getvalue() == ""


def test_a_reply_that_ends_while_thinking() -> None:
    out = Terminal()
    show(rich(out), [Reasoning("Hm"), Done("interrupted", STATS)])
    assert screen(out.getvalue()) == [
        "Thinking",
        "Hm",
        "Thought for 41 s, 120 tokens",
        "  611 tokens   12.2 tok/s   context 1.8k of 32k   stopped",
    ]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    out = Terminal()
    show(rich(out), turn())
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().startswith("Thinking\nHm.\nThought for 41 s, 120 tokens\nIt is 933.\n")


def test_a_dumb_terminal_gets_no_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    show(rich(out, "hide"), [Progress("Reading the prompt", 5, 2000, "tokens"), Reasoning("a")])
    assert out.getvalue() == ""


def test_a_stream_that_is_no_terminal_gets_no_escapes() -> None:
    out = io.StringIO()
    show(rich(out, "hide"), turn(Progress("Reading the prompt", 5, 2000, "tokens")))
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    harmless = clean(text)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", harmless
    )
    events = [Reasoning(text), Content(text), Done("stop", STATS)]
    ours = re.compile("\x1b\\[[02]m|\x1b\\[K|\r")
    for make in (rich, lambda out: PlainView(out, out)):
        out = Terminal()
        show(make(out), events)
        assert ours.sub("", out.getvalue()).count(harmless) == 2  # nothing lost, nothing obeyed
        assert "\x1b" not in ours.sub("", out.getvalue())
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


def test_writing_costs_little() -> None:
    """10,000 tokens at 30 a second are 333 s; drawing them may take 5 % of one core: 1.7 s."""
    out = Terminal()
    view, began = rich(out), views.time.process_time()
    show(view, [Content("word ") for _ in range(10_000)])
    assert views.time.process_time() - began < 1.7
    assert len(out.getvalue()) == 50_000


def test_figures() -> None:
    assert [short(n) for n in (950, 1843, 10240, 32768, 163840)] == [
        "950",
        "1.8k",
        "10k",
        "32k",
        "160k",
    ]
    assert [duration(s) for s in (0, 0.42, 3.4, 59.7, 91)] == [
        "0.0 s",
        "0.4 s",
        "3 s",
        "1 min 0 s",
        "1 min 31 s",
    ]
    line = stats_line(Done("length", GenerationStats(10, 0, 0, 1, 0.1, 0.0, 0.0)), 2048)
    assert line == "  1 token   0.0 tok/s   context 11 of 2k   cut at the token limit"
