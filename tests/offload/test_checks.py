"""The rows about what a machine may refuse: every answer, and this machine's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload import checks, syscalls
from tests.offload.test_residency import refuse


@pytest.mark.parametrize(
    ("setting", "found", "well"),
    [
        ("always [madvise] never", "madvise", True),
        ("[always] madvise never", "always", True),
        ("always madvise [never]", "never", False),
        ("", "not available", False),
    ],
)
def test_huge_pages(setting: str, found: str, well: bool) -> None:
    row = checks.huge_pages(setting)
    assert row.found == found and (row.hint == "") == well


def test_what_works_needs_no_hint() -> None:
    for row in (checks.populate, checks.direct_reads):
        assert (row(True).found, row(True).hint) == ("yes", "")
        assert row(False).found == "no"
        assert row(False).hint


def test_memory_limit() -> None:
    assert checks.memory_limit(None).found == "none"
    row = checks.memory_limit(3 << 30)
    assert row.found == "3.0 GiB left" and "mapped" in row.hint


@pytest.mark.parametrize(
    ("nodes", "status", "found", "hint"),
    [
        (1, "", "1", ""),
        (2, "Name:\tx\nMems_allowed_list:\t0-1\n", "2, memory of 2 allowed", "--interleave=all"),
        (2, "Mems_allowed:\t1\nMems_allowed_list:\t1\n", "2, memory of 1 allowed", "bound"),
        (8, "", "8, memory of 8 allowed", "--interleave=all"),
    ],
)
def test_numa(nodes: int, status: str, found: str, hint: str) -> None:
    row = checks.numa(nodes, status)
    assert row.found == found and hint in row.hint and bool(row.hint) == bool(hint)


def test_memory_lock() -> None:
    assert checks.memory_lock(None).found == "none"
    assert checks.memory_lock(8 << 20).found == "8.0 MiB"


@pytest.mark.parametrize(
    ("release", "found"),
    [("5.15.167.4-microsoft-standard-WSL2", "yes"), ("6.8.0-45-generic", "no"), ("", "no")],
)
def test_wsl(release: str, found: str) -> None:
    row = checks.wsl(release)
    assert row.found == found and bool(row.hint) == (found == "yes")


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(8192))
    assert len(checks.checks()) == 6
    assert len(checks.checks(file)) == 7
    assert not any(row.missing for row in checks.checks(file))
    monkeypatch.setattr(syscalls, "madvise", refuse(22))
    monkeypatch.setattr(syscalls, "open_direct", refuse(22))
    rows = {row.name: row for row in checks.checks(file)}
    assert rows["populating mapped files"].found == "no"
    assert rows["reading past the page cache"].found == "no"
