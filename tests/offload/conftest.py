"""Files of random bytes on a real disk, and a look at what the kernel holds of them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from offload import syscalls

SIZES = (48 << 20, (20 << 20) + 4097)  # several pieces; one file ends inside a page
Files = dict[Path, mmap.mmap]


@pytest.fixture(scope="session")
def contents() -> list[bytes]:
    rng = np.random.default_rng(3)
    return [rng.bytes(size) for size in SIZES]


@pytest.fixture
def paths(tmp_path: Path, contents: list[bytes]) -> Iterator[list[Path]]:
    found = []
    for i, content in enumerate(contents):
        path = tmp_path / f"weights-{i}.bin"
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # only clean pages can be dropped
        found.append(path)
    yield found
    for path in found:
        path.unlink()


@pytest.fixture
def open_files(paths: list[Path]) -> Callable[[], Files]:
    """Map the files, as a loader does."""

    def open_all() -> Files:
        maps = {}
        for path in paths:
            with path.open("rb") as file:
                maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return maps

    return open_all


def drop(paths: list[Path]) -> None:
    """Empty the page cache of the files."""
    for path in paths:
        with path.open("rb") as file:
            syscalls.forget(file.fileno(), 0, 0)


def cached_share(paths: list[Path]) -> float:
    """The share of the files' pages that the page cache holds."""
    cached = total = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cached += syscalls.resident_pages(syscalls.address_of(data), len(data))
            total += -(-len(data) // syscalls.PAGE)
    return cached / total
