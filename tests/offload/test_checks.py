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
        assert row(True)[1:] == ("yes", "")
        assert row(False).found == "no"
        assert row(False).hint


def test_memory_limit() -> None:
    assert checks.memory_limit(None).found == "none"
    row = checks.memory_limit(3 << 30)
    assert row.found == "3.0 GiB left" and "mapped" in row.hint


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(8192))
    assert len(checks.checks()) == 3
    assert len(checks.checks(file)) == 4
    monkeypatch.setattr(syscalls, "madvise", refuse(22))
    monkeypatch.setattr(syscalls, "open_direct", refuse(22))
    rows = {row.name: row for row in checks.checks(file)}
    assert rows["populating mapped files"].found == "no"
    assert rows["reading past the page cache"].found == "no"
