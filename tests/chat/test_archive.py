"""Conversations on disk: private, whole, and damaged ones left alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from localr1.chat import archive
from localr1.chat.archive import Saved
from localr1.chat.files import check_writable, write_atomically
from localr1.chat.transcript import Message, Transcript
from localr1.errors import LocalR1Error

TALK = [Message("user", "思\x1b[2J"), Message("assistant", "a", "thought", stopped=True)]


def keep(name: str, messages: list[Message] = TALK) -> Saved:
    saved = Saved(name, "tiny-r1", Transcript(list(messages), "Be brief."))
    archive.save(saved)
    return saved


def test_what_is_kept_comes_back() -> None:
    saved = keep("a talk")
    assert archive.load("a talk") == saved
    path = archive.session_file("a talk")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["a talk.json"]  # no temporary file is left


def test_the_newest_comes_first() -> None:
    with pytest.raises(LocalR1Error, match="no conversation to resume"):
        archive.latest()
    for age, name in enumerate(("new", "old", "oldest")):
        keep(name)
        os.utime(archive.session_file(name), (1e9 - age, 1e9 - age))
    assert archive.names() == ["new", "old", "oldest"]
    assert archive.latest() == "new"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"format": 99}).encode(),
        json.dumps({"format": 1, "messages": [{"role": "user"}]}).encode(),
        json.dumps({"format": 1, "model": "m", "created": 0, "updated": 0, "system": None,
                    "messages": [{"role": "user", "content": "alone"}]}).encode(),
        json.dumps({"format": 1, "model": 5, "created": 0, "updated": 0, "system": None,
                    "messages": []}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_is_reported_and_kept(damage: bytes) -> None:
    keep("good")
    path = archive.session_file("bad")
    path.write_bytes(damage)
    with pytest.raises(LocalR1Error, match="damaged") as caught:
        archive.load("bad")
    assert str(path) in caught.value.hint
    assert path.read_bytes() == damage
    rows = {row["name"]: row for row in archive.listing()}
    assert "error" in rows["bad"] and rows["good"]["turns"] == 1
    text = archive.listing_text(archive.listing())
    assert "思[2J" in text and "\x1b" not in text


def test_new_names_are_free() -> None:
    name = archive.new_name()
    keep(name)
    assert archive.new_name() != name


def test_renaming_and_removing_take_the_cache_along() -> None:
    keep("one")
    rows = archive.cache_file("one")
    rows.write_bytes(b"rows")
    archive.index_file(rows).write_bytes(b"{}")
    archive.rename("one", "two")
    assert archive.cache_file("two").read_bytes() == b"rows"
    assert not rows.exists()
    archive.remove("two")
    assert os.listdir(archive.sessions_folder()) == []
    with pytest.raises(LocalR1Error, match="no conversation"):
        archive.remove("two")


def test_only_the_newest_caches_are_kept() -> None:
    for n in range(12):
        keep(f"talk {n}")
        os.utime(archive.session_file(f"talk {n}"), (1e9 + n, 1e9 + n))
        archive.cache_file(f"talk {n}").write_bytes(b"rows")
    archive.drop_old_caches()
    assert len(archive.names()) == 12
    assert [n for n in range(12) if archive.cache_file(f"talk {n}").exists()] == list(range(4, 12))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_an_interrupt_behind_the_replacement_is_told_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(*paths: str) -> None:
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new" and os.listdir(tmp_path) == ["x"]


def test_writing_to_links_and_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    write_atomically(Path("/dev/null"), "gone")


def test_what_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    for path in (tmp_path, tmp_path / "none" / "x"):
        with pytest.raises(LocalR1Error, match="cannot write"):
            check_writable(path)
