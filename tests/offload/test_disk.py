"""The speed of a disk: of a model that lies there, of a file of our own, and of neither."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from offload import disk, syscalls
from tests.offload.test_residency import refuse


@pytest.fixture(autouse=True)
def little_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test has no time for the sizes that make a figure steady."""
    monkeypatch.setattr(disk, "LEAST", 8 << 20)
    monkeypatch.setattr(disk, "_MOST_WRITTEN", 24 << 20)


def test_a_model_is_read_where_one_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "small.gguf").write_bytes(bytes(100))
    (tmp_path / "some" / "model.gguf").write_bytes(os.urandom((20 << 20) + 5))
    monkeypatch.setattr(disk, "_write", lambda *_: 1 / 0)  # nothing is to be written
    speed = disk.read_bandwidth(tmp_path)
    assert speed is not None and speed > 1e6


@pytest.mark.parametrize("failing", ["open", "read", "nothing"])
def test_a_folder_without_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """With O_DIRECT, where it is refused, and where only the read is."""
    if failing == "open":
        monkeypatch.setattr(syscalls, "open_direct", refuse(errno.EINVAL))
    if failing == "read":
        # A descriptor that can be opened but not read.
        monkeypatch.setattr(syscalls, "open_direct", lambda path: os.open(path, os.O_WRONLY))
    speed = disk.read_bandwidth(tmp_path / "not" / "there")
    assert speed is not None and speed > 1e6
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_one_we_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.read_bandwidth(Path("/proc/self")) is None
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 8 << 20)
    assert disk.read_bandwidth(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_is_there(tmp_path: Path) -> None:
    assert disk.existing(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").touch()
    assert disk.existing(tmp_path / "file" / "b") == tmp_path
    assert disk.free_bytes(tmp_path / "a" / "b") > 0
