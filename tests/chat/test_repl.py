"""The real chat on a real (pseudo-)terminal, with a model that plays back scripts."""

from __future__ import annotations

import json
import random
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localr1.chat.transcript import Message, Transcript
from tests.chat.terminal import ChildTerminal

OURS = re.compile(r"\x1b\[[0-9;]*[mAKJ]|\r")
CTRL_C, CTRL_D, ENTER, ALT_ENTER, CTRL_J, UP = "\x03", "\x04", "\r", "\x1b\r", "\n", "\x1b[A"
CTRL_BACKSLASH = "\x1c"


def report(path: Path) -> list[Message]:
    """The transcript the child left, checked to be well-formed."""
    messages = [Message(**fields) for fields in json.loads(path.read_text("utf-8"))]
    return Transcript(messages).messages


def test_a_talk(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", "0", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        assert terminal.lines()[0] == "fake-r1   /help lists commands, Ctrl-D leaves"
        terminal.send("What is 347 + 586?" + ENTER)
        terminal.wait("context 12 of 2k")
        terminal.wait_prompt()
        lines = terminal.lines()
        assert lines[1] == "> What is 347 + 586?"
        assert re.fullmatch(r"Thought for 0\.\d s, 6 tokens", lines[2])
        assert lines[3] == "It is 933."
        assert re.fullmatch(r"  11 tokens   [\d.]+ tok/s   context 12 of 2k", lines[4])
        terminal.send("/think hide" + ENTER)
        terminal.wait("hidden")
        terminal.wait_prompt()
        terminal.send("again" + ENTER)
        terminal.wait("context 14 of 2k")
        terminal.wait_prompt()
        assert "= 933" not in terminal.text()
        assert terminal.text().count("Thought for") == 2
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["What is 347 + 586?", "again"]


def test_lines_blocks_and_pastes(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", "0", str(tmp_path / "talk")) as terminal:
        for keys in (
            "one" + ALT_ENTER + "two" + CTRL_J + "three" + ENTER,
            '"""a' + ENTER + "b" + ENTER + '"""' + ENTER,
            "\x1b[200~pasted\r/help\x1b[201~" + ENTER,
            "//slash" + ENTER,
        ):
            terminal.wait_prompt()
            seen = terminal.raw.count("context ")
            terminal.send(keys)
            terminal.wait(lambda t, seen=seen: t.raw.count("context ") > seen)
        terminal.wait_prompt()
        terminal.send("  " + ENTER)
        terminal.wait(lambda t: t.lines()[-2:] == [">", ">"])
        terminal.wait_prompt()
        terminal.send("/quit" + ENTER)
        assert terminal.exit_code() == 0
    questions = [message.content for message in report(tmp_path / "talk")[::2]]
    assert questions == ["one\ntwo\nthree", "a\nb", "pasted\n/help", "/slash"]


def test_a_message_typed_while_the_model_writes_is_sent_next(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", "0.05", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("one" + ENTER)
        terminal.wait("347")
        terminal.send("two" + ENTER)
        terminal.wait(lambda t: t.raw.count("context ") == 2)
        assert terminal.text().count("two") == 1
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["one", "two"]


def test_history_is_kept_and_private(tmp_path: Path) -> None:
    file = tmp_path / ".local/state/localr1/history"
    for keys in ("a first question", UP):
        with ChildTerminal(tmp_path, "chat", "sum", "0", str(tmp_path / "talk")) as terminal:
            terminal.wait_prompt()
            terminal.send(keys)
            terminal.wait("> a first question")
            terminal.send(ENTER)
            terminal.wait("context ")
            terminal.wait_prompt()
            terminal.send(CTRL_D)
            assert terminal.exit_code() == 0
        assert report(tmp_path / "talk")[0].content == "a first question"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_ctrl_c_while_idle_drops_the_line(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", "0", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("never sent")
        terminal.wait("never sent")
        terminal.send(CTRL_C)
        terminal.wait_prompt()
        assert "never" not in terminal.text()
        terminal.send(CTRL_C)
        terminal.wait("\nCtrl-D leaves")
        terminal.wait_prompt()
        terminal.send("sent" + ENTER)
        terminal.wait("context ")
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["sent"]


def test_ctrl_c_at_random_moments_stops_and_keeps_the_turn(tmp_path: Path) -> None:
    def ends(terminal: ChildTerminal) -> int:
        """Answers ended, and lines dropped by a Ctrl-C that came while there was no answer."""
        return terminal.raw.count("context ") + terminal.raw.count("Ctrl-D leaves")

    moments, turns = random.Random(3), 50
    with ChildTerminal(tmp_path, "chat", "long", "0.002", str(tmp_path / "talk")) as terminal:
        for turn in range(turns):
            terminal.wait_prompt()
            seen = ends(terminal)
            terminal.send(f"question {turn}" + ENTER)
            until = time.monotonic() + moments.uniform(0.0, 0.15)
            while time.monotonic() < until:
                terminal.read(0.01)
            terminal.send(CTRL_C)
            terminal.wait(lambda t, seen=seen: ends(t) > seen)
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    messages = report(tmp_path / "talk")
    assert len(messages) >= turns // 2  # a quarter of them; the others had not begun
    answers = messages[1::2]
    # prompt_toolkit can swallow a key in the few milliseconds in which it lets go of the terminal
    assert sum(not answer.stopped for answer in answers) <= 2
    for answer in answers:
        assert re.sub(r"(step|word) \d+\.? ", "", answer.reasoning + answer.content) == ""


def test_twice_ctrl_c_leaves_with_130(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "slow", "0", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("question" + ENTER)
        terminal.wait("step 1.")
        terminal.send(CTRL_C)
        time.sleep(0.3)
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130
        assert "^C" not in terminal.raw
    question, answer = report(tmp_path / "talk")
    assert (question.content, answer.stopped) == ("question", True)
    assert answer.reasoning == "step 0. step 1. "


def test_twice_ctrl_c_leaves_a_fast_model_too(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "long", "0.01") as terminal:
        terminal.wait_prompt()
        terminal.send("question" + ENTER)
        terminal.wait("step 1.")
        terminal.send(CTRL_C)
        terminal.wait("stopped")
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130


def test_an_error_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "full", "0", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("one" + ENTER)
        terminal.wait("error: the context is full\nhint:  /clear starts anew")
        terminal.wait_prompt()
        terminal.send("two" + ENTER)
        terminal.wait("context ")
        terminal.wait_prompt()
        terminal.send("/bye" + ENTER)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["two"]


def test_reading_a_long_prompt_leaves_no_trace(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "reading", "0.03") as terminal:
        terminal.wait_prompt()
        terminal.send("hi" + ENTER)
        terminal.wait("Reading the prompt   1,200 tokens")
        terminal.wait("context ")
        terminal.wait_prompt()
        assert "Reading" not in terminal.text()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "hostile") as terminal:
        terminal.wait_prompt()
        terminal.send("hi" + ENTER)
        terminal.wait("context ")
        assert "]0;title" in OURS.sub("", terminal.raw)
        assert "[/foo] list[int][2J]52;c;aGk=" in terminal.text()
        assert terminal.screen.title == ""


def test_no_color(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", NO_COLOR="1") as terminal:
        terminal.wait_prompt()
        before = len(terminal.raw)
        terminal.send("hi" + ENTER)
        terminal.wait("context ")
        assert "\x1b[2m" not in terminal.raw[before:]


def test_run_on_a_terminal_shows_the_thought_too(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "run", "sum") as terminal:
        assert terminal.exit_code() == 0
        told = r"Thought for \d+\.\d s, 6 tokens\nIt is 933\.\n  11 tokens"
        assert re.search(told, terminal.text())


@pytest.mark.parametrize(("stdin", "code"), [("sum\n", 0), ("", 1)])
def test_without_a_terminal_nothing_waits(stdin: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chat.child", "chat", "sum"]
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=20)
    assert ended.returncode == code
    assert ended.stdout == ("It is **933**.\n" if code == 0 else "")


def test_nothing_but_the_chat_imports_prompt_toolkit() -> None:
    code = "import sys, localr1.chat.repl; print('prompt_toolkit' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "False\n"


def test_ctrl_backslash_answers_now(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "loop", "0.01", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("question" + ENTER)
        terminal.wait("The thought goes round in circles: Ctrl-\\ answers now, Ctrl-C stops")
        terminal.wait("Thinking")
        terminal.send(CTRL_BACKSLASH)
        terminal.wait("context ")
        terminal.wait_prompt()
        terminal.send(CTRL_BACKSLASH + "x" + CTRL_C)  # means nothing at the prompt
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    answer = report(tmp_path / "talk")[1]
    assert "so what? so what? " in answer.reasoning
    assert answer.reasoning.endswith("I will answer now.\n")
    assert (answer.content, answer.stopped) == ("It is **933**.", False)


def test_a_signal_at_the_prompt_is_ctrl_c(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum") as terminal:
        terminal.wait_prompt()
        terminal.child.kill(signal.SIGINT)
        terminal.wait(">\nCtrl-D leaves\n>")  # not the one above the first prompt
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_ctrl_backslash_too_late_ends_nothing(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "sum", "0.002") as terminal:
        terminal.wait_prompt()
        for turn in range(5):
            terminal.send(f"question {turn}" + ENTER)
            for _ in range(20):
                terminal.child.kill(signal.SIGQUIT)
                terminal.read(0.004)
            terminal.wait(lambda t, turn=turn: t.raw.count("context ") > turn)
            terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_tab_completes_and_the_editor_writes(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "from the editor" > "$1"\n')
    editor.chmod(0o755)
    talk = str(tmp_path / "talk")
    with ChildTerminal(tmp_path, "chat", "sum", "0", talk, EDITOR=str(editor)) as terminal:
        terminal.wait_prompt()
        terminal.send("/thi\thi\t")
        terminal.wait("> /think hide")
        terminal.send(ENTER)
        terminal.wait("thoughts are hidden")
        terminal.wait_prompt()
        terminal.send("\x18\x05")
        terminal.wait("> from the editor")  # sent as it is saved, as in a shell
        terminal.wait("context ")
        terminal.wait_prompt()
        terminal.send("/edit" + ENTER)
        terminal.wait(lambda t: t.lines()[-1] == "> from the editor")
        terminal.send(", better" + ENTER)
        terminal.wait(lambda t: t.raw.count("context ") == 2)
        terminal.wait_prompt()
        terminal.send("/retry" + ENTER)
        terminal.wait(lambda t: t.raw.count("context ") == 3)
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["from the editor, better"]


def test_resizing_while_the_model_thinks_and_writes(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "long", "0.002", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("question" + ENTER)
        for text, columns in (("Thinking", 50), ("step 150", 40), ("word 20 ", 60), ("200 ", 44)):
            terminal.wait(lambda t, text=text: text in t.text() or "context " in t.raw)
            terminal.resize(columns)
        terminal.wait("context ")
        terminal.wait_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    answer = report(tmp_path / "talk")[1]
    assert len(answer.content.split()) == len(answer.reasoning.split()) == 800
    assert terminal.raw.count("Thought for") == 1


def test_forty_columns(tmp_path: Path) -> None:
    with ChildTerminal(tmp_path, "chat", "long", "0.001", columns=40) as terminal:
        terminal.wait_prompt()
        terminal.send("question" + ENTER)
        terminal.wait("Thinking")
        terminal.wait("context ")
        terminal.wait_prompt()
        everything = terminal.scrolled() + terminal.text()
    assert "step" not in everything and "Thinking" not in everything
    assert everything.count("Thought for") == 1
    words = " ".join(everything.split())
    assert " ".join(f"word {i}" for i in range(400)) in words
