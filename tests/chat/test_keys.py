"""What Tab offers, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from localr1.chat import archive
from localr1.chat.archive import Saved
from localr1.chat.keys import completed_word, completions
from localr1.chat.transcript import Message, Transcript


@pytest.mark.parametrize(
    ("before", "offered"),
    [
        ("/he", ["/help "]),
        ("/s", ["/set ", "/system ", "/stats ", "/save "]),
        ("/think ", ["show", "fold", "hide"]),
        ("/think f", ["fold"]),
        ("/set temp", ["temperature"]),
        ("/model tiny", ["tiny-r1"]),
        ("/nothing x", []),
        ("/stats x", []),
        ("a /he", []),
        ("/help\n/he", []),
        ("", []),
    ],
)
def test_completions(before: str, offered: list[str]) -> None:
    assert completions(before) == offered


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes").mkdir()
    for name in ("notes/a.txt", "no.md", ".hidden", "bad\x1b[2J", "with blank"):
        (tmp_path / name).write_text("")
    assert completions("/file no") == ["no.md", "notes/"]
    assert completions("/file a.txt notes/") == ["notes/a.txt"]
    assert completions("/file ") == ["no.md", "notes/"]
    assert completions("/file .h") == [".hidden"]
    assert completions("/file ~/n") == ["~/no.md", "~/notes/"]
    assert completions("/file none/") == []
    assert completed_word("/file a.txt notes/") == "notes/"


def test_names_of_conversations() -> None:
    talk = Transcript([Message("user", "a"), Message("assistant", "b")])
    archive.save(Saved("first talk", "tiny-r1", talk))
    assert completions("/load fir") == ["first talk"]
    assert completions("/load first t") == ["first talk"]
    assert completed_word("/load first t") == "first t"
