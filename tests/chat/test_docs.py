"""docs/chat.md tells what is so: its tests exist, its commands are all there are."""

from __future__ import annotations

import re
from pathlib import Path

from localr1.chat.commands import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "chat.md").read_text("utf-8")


def test_every_feature_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TEXT)
    assert len(named) > 30
    missing = [f"{p}::{n}" for p, n in named if f"def {n}(" not in (ROOT / p).read_text("utf-8")]
    assert missing == []


def test_every_command_is_documented_and_none_else() -> None:
    section = TEXT.partition("\n## Commands\n")[2].partition("\n## ")[0]
    rows = "".join(line for line in section.splitlines() if line.startswith("| `/"))
    documented = set(re.findall(r"`/(\w+)", rows))
    names = {name for command in COMMANDS for name in (command.name, *command.aliases)}
    assert documented == names


def test_the_screen_is_captured() -> None:
    for words in ("Loading ", "Thinking ", "Thought for ", "context "):
        assert re.search(rf"^ *{words}|{words}", TEXT.partition("end of capture")[0], re.MULTILINE)
