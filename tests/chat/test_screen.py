"""What a terminal shows of a turn: live, folded, narrow, without colour, and at what cost."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable

import pyte
import pytest

from localr1.chat import live, screen
from localr1.chat.screen import RichView
from localr1.chat.terminal import clean
from localr1.chat.views import ThinkMode
from localr1.events import Content, Done, Event, GenerationStats, Progress, Reasoning, Repetition
from tests.chat.test_views import HOSTILE, STATS, Terminal, turn

FIGURES = "  611 tokens   12.2 tok/s   context 1.8k of 32k"
FOLDED = "Thought for 41 s, 120 tokens"


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(live, "_REDRAW_SECONDS", 0)


def rich(out: io.StringIO, think: ThinkMode = "fold") -> RichView:
    return RichView(out, out, lambda: STATS, 32768, think)


def show(events: Iterable[Event], think: ThinkMode = "fold") -> Terminal:
    out = Terminal()
    view = rich(out, think)
    for event in events:
        view.show(event)
    return out


def fed(raw: str, width: int = 80) -> pyte.HistoryScreen:
    display = pyte.HistoryScreen(width, 24, history=2000)
    pyte.Stream(display).feed(raw.replace("\n", "\r\n"))
    return display


def lines(raw: str, width: int = 80) -> list[str]:
    """The lines a terminal shows after `raw`, trailing empty ones left out."""
    return "\n".join(line.rstrip() for line in fed(raw, width).display).rstrip().split("\n")


def scrolled(display: pyte.HistoryScreen) -> str:
    """What has left the screen at its top."""
    return "\n".join("".join(line[x].data for x in sorted(line)) for line in display.history.top)


def long_thought() -> list[Event]:
    return [Reasoning(f"step {i} of a thought, ") for i in range(300)]


def test_a_thought_folds_to_one_line() -> None:
    assert lines(show(turn()).getvalue()) == [FOLDED, "It is 933.", FIGURES]


def test_the_window_shows_the_last_lines_of_the_thought() -> None:
    shown = lines(show(long_thought()).getvalue())
    assert re.fullmatch(
        r"Thinking 41 s   120 tokens   2.9 tok/s +Ctrl-C stop, Ctrl-\\ .+", shown[0]
    )
    assert len(shown) == 6
    assert shown[-1].endswith("step 299 of a thought,")
    assert all(line.startswith("  ") and len(line) < 80 for line in shown[1:])


def test_nothing_of_a_folded_thought_is_left_even_in_the_scrollback() -> None:
    before = "".join(f"earlier {i}\n" for i in range(40))
    raw = show([*long_thought(), Content("933."), Done("stop", STATS)]).getvalue()
    display = fed(before + raw)
    everything = scrolled(display) + "\n" + "\n".join(display.display)
    assert "step" not in everything
    assert everything.count("Thought for") == 1
    assert "Thinking" not in everything
    assert all(f"earlier {i}" in everything for i in range(40))  # nothing of before is lost


def test_thoughts_shown_in_full() -> None:
    out = show(turn(), "show")
    assert lines(out.getvalue()) == ["Thinking", "Hm.", FOLDED, "It is 933.", FIGURES]
    assert "\x1b[2mHm.\n\x1b[0m" in out.getvalue()  # the thought is dim, the answer is not


def test_hidden_thoughts_leave_one_line() -> None:
    thinking = [Reasoning("a secret"), Reasoning(" thought")]
    assert lines(show(thinking, "hide").getvalue())[0].startswith("Thinking 41 s   120 tokens")
    out = show([*thinking, Content("933."), Done("stop", STATS)], "hide")
    assert lines(out.getvalue())[:2] == [FOLDED, "933."]
    assert "secret" not in out.getvalue()


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = show([*long_thought(), Content("a word and another, " * 5), Done("stop", STATS)])
    assert lines(out.getvalue(), 40) == [
        FOLDED,
        "a word and another, a word and another,",
        "a word and another, a word and another,",
        "a word and another,",
        FIGURES[:40],
        FIGURES[40:],
    ]


@pytest.mark.parametrize("width", [2, 7, 20])
def test_absurdly_narrow_terminals_leave_no_live_line(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = show([Reasoning("思考 and more ")] * 20 + [Content("b"), Done("stop", STATS)])
    display = fed(out.getvalue(), width)
    everything = "".join((scrolled(display) + "".join(display.display)).split())
    assert everything.startswith("Thoughtfor41s,120tokens")
    assert "more" not in everything


def test_wide_characters_keep_the_window_in_its_lines() -> None:
    shown = lines(show([Reasoning("天地玄黃宇宙洪荒" * 60)]).getvalue())
    assert len(shown) == 6
    assert max(len(line) for line in shown[1:]) <= 40 + 2


def test_progress_of_a_long_prompt_is_shown_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(i) for i in range(1000))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    reading = [Progress("Reading the prompt", done, 1204, "tokens") for done in (301, 602)]
    shown = lines(show(reading).getvalue())
    assert re.fullmatch(r"Reading the prompt   1,204 tokens   50 %   \d+ s left", shown[0])
    read = [*reading, *turn(Progress("Reading the prompt", 1204, 1204, "tokens"))]
    assert lines(show(read).getvalue())[0] == FOLDED


def test_progress_of_a_short_prompt_is_not_shown() -> None:
    assert show([Progress("Reading the prompt", 5, 20, "tokens")]).getvalue() == ""


def test_a_reply_that_ends_while_thinking() -> None:
    shown = lines(show([Reasoning("Hm"), Done("interrupted", STATS)]).getvalue())
    assert shown == [FOLDED, FIGURES + "   stopped"]


def test_repetition_is_told_above_the_window() -> None:
    events = [Reasoning("so what "), Repetition(2, True), Reasoning("so what ")]
    shown = lines(show(events).getvalue())
    assert "circles" in shown[0] and "Ctrl-\\ answers now" in shown[0]
    assert shown[1].startswith("Thinking")
    shown = lines(show([Content("so"), Repetition(2, False), Done("stop", STATS)]).getvalue())
    assert shown[1] == "The answer repeats itself: Ctrl-C stops"


def test_markdown_and_formulas() -> None:
    text = "## Sum\nIt is **933**, $x^2 \\le 4$:\n\\boxed{933}\n"
    out = show([Content(piece) for piece in text] + [Done("stop", STATS)])
    assert lines(out.getvalue()) == ["Sum", "It is 933, x² ≤ 4:", "[933]", FIGURES]
    assert "\x1b[1m933\x1b[0m" in out.getvalue()


def test_no_color_keeps_the_signs_of_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = show([Reasoning("Hm"), Content("It is **933**."), Done("stop", STATS)]).getvalue()
    assert lines(out) == [FOLDED, "It is **933**.", FIGURES]
    assert not re.search(r"\x1b\[[0-9;]*m", out)


def test_a_dumb_terminal_gets_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = show(turn(Progress("Reading the prompt", 5, 2000, "tokens")))
    assert out.getvalue() == f"Thinking\n{FOLDED}\nIt is 933.\n{FIGURES}\n"


def test_a_stream_that_is_no_terminal_gets_no_escapes() -> None:
    out = io.StringIO()
    view = rich(out)
    for event in turn(Progress("Reading the prompt", 5, 2000, "tokens")):
        view.show(event)
    assert not re.search("[\x1b\r\a]", out.getvalue())


def test_the_bell_rings_after_a_long_turn_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\a" not in show(turn()).getvalue()
    monkeypatch.setattr(screen, "_BELL_SECONDS", -1.0)
    assert show(turn()).getvalue().endswith("\a")


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
OURS = re.compile(r"\x1b\[[0-9;]*[mAKJ]|\r")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("think", ["show", "fold"])
@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_hostile_text_in_pieces_of_any_size(text: str, think: ThinkMode, cut: int) -> None:
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    events = [*map(Reasoning, pieces), *map(Content, pieces), Done("stop", STATS)]
    shown = OURS.sub("", show(events, think).getvalue())
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown
    )
    assert clean(text).replace(" ", "") in shown.replace(" ", "").replace("\n", "")


def test_ten_thousand_tokens_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 30 tokens/s they take 333 s; drawing may take 5 % of one core: 17 s. We ask for 2 s."""
    monkeypatch.setattr(live, "_REDRAW_SECONDS", 0.1)
    words = ["Some **bold** ", "text with $x^2$ ", "and `code`.\n", "- item ", "思考 ", "word "]
    tokens = [words[i % len(words)] for i in range(10_000)]
    began = time.process_time()
    show([Reasoning(word) for word in tokens[:5000]] + [Content(word) for word in tokens])
    assert time.process_time() - began < 2


def test_redrawing_the_window_costs_little() -> None:
    """333 s hold 3,330 redraws at most; each redraw here, none left out."""
    began = time.process_time()
    show([Reasoning("a thought, and ") for _ in range(3330)])
    assert time.process_time() - began < 3


def test_figures_of_a_turn_without_a_thought() -> None:
    stats = GenerationStats(10, 0, 0, 5, 0.1, 1.0, 0.0)
    assert "Thought" not in show([Content("hi"), Done("stop", stats)]).getvalue()
