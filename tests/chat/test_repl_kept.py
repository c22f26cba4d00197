"""Conversations kept on disk, as a person at a real terminal meets them."""

from __future__ import annotations

import json
import random
import signal
import stat
import time
from pathlib import Path

from localr1.chat.transcript import Message, Transcript
from tests.chat.terminal import ChildTerminal
from tests.chat.test_repl import CTRL_D, ENTER, report


def test_killed_at_random_moments_every_finished_turn_is_there(tmp_path: Path) -> None:
    """kill -9 at 50 moments: while reading, thinking, writing, saving and idle."""
    moments, asked = random.Random(5), 0
    finished: list[str] = []
    for _ in range(50):
        mode = "resume" if asked else "chat"
        with ChildTerminal(tmp_path, mode, "sum", "0.0005", str(tmp_path / "talk")) as terminal:
            terminal.wait_prompt()
            until = time.monotonic() + moments.uniform(0.0, 0.12)
            while time.monotonic() < until:
                terminal.send(f"question {asked}" + ENTER)
                seen, asked = terminal.raw.count("context "), asked + 1
                while terminal.raw.count("context ") == seen and time.monotonic() < until:
                    terminal.read(0.005)
                if terminal.raw.count("context ") > seen:
                    terminal.wait_prompt()
                    finished.append(f"question {asked - 1}")
            terminal.child.kill(signal.SIGKILL)
        kept = json.loads(saved_talk(tmp_path).read_text("utf-8"))["messages"] if finished else []
        Transcript([Message(**fields) for fields in kept])
        questions = [fields["content"] for fields in kept[::2]]
        assert [q for q in questions if q in finished] == finished
    assert len(finished) >= 5


def saved_talk(home: Path) -> Path:
    (path,) = (home / ".local/state/localr1/sessions").glob("*.json")
    return path


def test_a_resumed_talk_goes_on(tmp_path: Path) -> None:
    for mode in ("chat", "resume"):
        with ChildTerminal(tmp_path, mode, "sum", "0", str(tmp_path / "talk")) as terminal:
            terminal.wait_prompt()
            terminal.send(f"a question of {mode}" + ENTER)
            terminal.wait("context ")
            terminal.wait_prompt()
            terminal.send(CTRL_D)
            assert terminal.exit_code() == 0
    questions = [m.content for m in report(tmp_path / "talk")[::2]]
    assert questions == ["a question of chat", "a question of resume"]
    assert stat.S_IMODE(saved_talk(tmp_path).stat().st_mode) == 0o600


def test_a_full_disk_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    state = tmp_path / ".local/state/localr1"
    state.mkdir(parents=True)
    (state / "sessions").write_text("this is no folder")
    with ChildTerminal(tmp_path, "chat", "sum", "0", str(tmp_path / "talk")) as terminal:
        terminal.wait_prompt()
        terminal.send("one" + ENTER)
        terminal.wait("error: ")
        terminal.wait_prompt()
        terminal.send("/bye" + ENTER)
        assert terminal.exit_code() == 0
    assert [m.content for m in report(tmp_path / "talk")[::2]] == ["one"]
