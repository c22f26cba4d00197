"""Both residencies: the same bytes, once in RAM, told in honest progress, whatever is refused."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from offload import parallel, syscalls
from offload.errors import FileChanged, NoRoom, Unknown, Unreadable
from offload.residency import Residency, holder, release
from offload.syscalls import PAGE
from tests.offload.conftest import SIZES, Files, cached_share, drop

BOTH = pytest.mark.parametrize("name", ["mapped", "owned"])
TOTAL = sum(SIZES)
Open = Callable[[], Files]


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("offload")]


def refuse(code: int) -> Callable[..., int]:
    """A system call that fails with `code`."""

    def call(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def assert_right(weights: Residency, contents: list[bytes]) -> None:
    held = [bytes(data) for data in weights.files.values()]
    assert held == contents


@BOTH
@pytest.mark.parametrize("warm", [False, True])
def test_the_bytes_are_the_files(
    name: str, warm: bool, paths: list[Path], open_files: Open, contents: list[bytes]
) -> None:
    if not warm:
        drop(paths)
    weights = holder(name, open_files())
    seen = list(weights.load())
    done = [bytes_done for bytes_done, _ in seen]
    assert done == sorted(set(done)) and seen[-1] == (TOTAL, TOTAL)
    assert {total for _, total in seen} == {TOTAL}
    assert list(weights.files) == paths
    assert_right(weights, contents)
    assert not readers()


@BOTH
def test_only_what_is_wanted_is_brought_in(
    name: str, paths: list[Path], open_files: Open, contents: list[bytes]
) -> None:
    """In whole pages, those that touch only once."""
    drop(paths)
    spans = {paths[0]: [(PAGE + 5, PAGE + 9), (0, 7), (3 * PAGE, 3 * PAGE + 1)]}
    weights = holder(name, open_files(), spans)
    assert list(weights.load())[-1] == (3 * PAGE, 3 * PAGE)
    held = bytes(weights.files[paths[0]])
    for begin, end in ((0, 2 * PAGE), (3 * PAGE, 4 * PAGE)):
        assert held[begin:end] == contents[0][begin:end]


def test_released_pages_leave_the_page_cache(paths: list[Path], open_files: Open) -> None:
    """As far as the file system lets go of any."""
    files = open_files()
    list(holder("mapped", files).load())
    release(files, {path: [(0, len(data))] for path, data in files.items()})
    left = cached_share(paths)
    drop(paths)
    assert left <= cached_share(paths) + 0.1  # ends of files are no whole pages
    assert_right(holder("mapped", files), [bytes(data) for data in files.values()])


def test_auto_is_mapped_and_other_names_are_refused(open_files: Open) -> None:
    maps = open_files()
    assert holder("auto", maps).files == maps
    with pytest.raises(Unknown, match="pinned"):
        holder("pinned", maps)


def test_mapped_fills_the_page_cache(paths: list[Path], open_files: Open) -> None:
    drop(paths)
    if cached_share(paths) > 0:
        pytest.skip("this file system does not let go of pages")
    list(holder("mapped", open_files()).load())
    assert cached_share(paths) == 1


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("warm", [False, True])
def test_owned_leaves_no_second_copy(
    direct: bool, warm: bool, paths: list[Path], open_files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(paths)
    if cached_share(paths) > 0:
        pytest.skip("this file system does not let go of pages")
    if warm:
        for path in paths:
            path.read_bytes()
    if not direct:
        monkeypatch.setattr(syscalls, "open_direct", refuse(errno.EINVAL))
    weights = holder("owned", open_files())
    list(weights.load())
    assert cached_share(paths) == 0
    assert len(weights.files) == len(paths)


def test_owned_memory_is_counted_once_and_freed(paths: list[Path], open_files: Open) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    weights = holder("owned", open_files())
    list(weights.load())
    grown = process.memory_info().rss - before
    assert TOTAL <= grown < TOTAL + (16 << 20)  # huge pages round up, and Python breathes
    del weights
    assert process.memory_info().rss - before < 8 << 20


def test_owned_does_not_notice_what_happens_to_the_file(
    paths: list[Path], open_files: Open, contents: list[bytes]
) -> None:
    weights = holder("owned", open_files())
    list(weights.load())
    os.truncate(paths[0], 0)
    assert_right(weights, contents)
    assert all(data.readonly for data in weights.files.values())


def huge_kib(address: int) -> int:
    """KiB of the mapping at `address` that lie in huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(end, 16) for end in head.split("-"))
            inside = low <= address < high
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    return 0


def test_owned_has_huge_pages(open_files: Open) -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("huge pages are off here")
    weights = holder("owned", open_files())
    list(weights.load())
    first = next(iter(weights.files.values()))
    assert huge_kib(syscalls.address_of(first) + SIZES[0] // 2) >= SIZES[0] // 1024 // 2


@BOTH
def test_a_kernel_that_refuses_every_advice(
    name: str,
    paths: list[Path],
    open_files: Open,
    contents: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop(paths)
    monkeypatch.setattr(syscalls, "madvise", refuse(errno.EINVAL))
    monkeypatch.setattr(syscalls, "resident_pages", refuse(errno.ENOSYS))
    weights = holder(name, open_files())
    assert list(weights.load())[-1] == (TOTAL, TOTAL)
    assert_right(weights, contents)


def test_mapped_is_filled_without_populate_too(
    paths: list[Path], open_files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(paths)
    monkeypatch.setattr(syscalls, "madvise", refuse(errno.EINVAL))
    list(holder("mapped", open_files()).load())
    assert cached_share(paths) == 1


def test_direct_reads_refused_at_the_first_read(
    paths: list[Path], open_files: Open, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems take the flag and fail later: a descriptor for writing plays that."""
    drop(paths)
    monkeypatch.setattr(syscalls, "open_direct", lambda path: os.open(path, os.O_WRONLY))
    weights = holder("owned", open_files())
    list(weights.load())
    assert_right(weights, contents)


@BOTH
def test_short_reads_go_on(
    name: str,
    paths: list[Path],
    open_files: Open,
    contents: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop(paths)
    real = os.preadv
    monkeypatch.setattr(syscalls, "madvise", refuse(errno.EINVAL))
    monkeypatch.setattr(
        os, "preadv", lambda fd, views, at: real(fd, [views[0][: 1 + len(views[0]) // 3]], at)
    )
    weights = holder(name, open_files())
    assert list(weights.load())[-1] == (TOTAL, TOTAL)
    assert_right(weights, contents)


@BOTH
@pytest.mark.parametrize("after", [0, 2])
def test_a_file_that_is_cut_while_it_loads(
    name: str, after: int, paths: list[Path], open_files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first piece, or between two; a process that touched its mapping would be dead."""
    monkeypatch.setattr(parallel, "reader_threads", lambda: 1)
    drop(paths)
    loading = holder(name, open_files()).load()
    for _ in range(after):
        next(loading)
    os.truncate(paths[0], 25 << 20)
    with pytest.raises(FileChanged, match="changed while it was loaded"):
        list(loading)
    assert not readers()


@BOTH
def test_a_file_that_vanished(name: str, paths: list[Path], open_files: Open) -> None:
    weights = holder(name, open_files())
    os.rename(paths[1], f"{paths[1]}.away")
    with pytest.raises(Unreadable, match="cannot read weights-1"):
        list(weights.load())
    os.rename(f"{paths[1]}.away", paths[1])


@BOTH
def test_a_disk_that_fails(
    name: str, paths: list[Path], open_files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(paths)
    monkeypatch.setattr(syscalls, "madvise", refuse(errno.EINVAL))
    monkeypatch.setattr(os, "preadv", refuse(errno.EIO))
    with pytest.raises(Unreadable, match="Input/output error"):
        list(holder(name, open_files()).load())
    assert not readers()


def test_no_memory(open_files: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "anonymous", refuse(errno.ENOMEM))
    with pytest.raises(NoRoom, match="memory"):
        list(holder("owned", open_files()).load())


@BOTH
def test_stopping_early_leaves_nothing_behind(name: str, open_files: Open) -> None:
    """What a Ctrl-C does: the exception comes out of the loop, and the iterator is closed."""
    before, descriptors = psutil.Process().memory_info().rss, psutil.Process().num_fds()

    def interrupted() -> None:
        maps = open_files()
        with pytest.raises(KeyboardInterrupt):
            for done, _ in holder(name, maps).load():
                if done > TOTAL // 8:
                    raise KeyboardInterrupt

    interrupted()
    assert not readers()
    assert psutil.Process().num_fds() <= descriptors
    assert psutil.Process().memory_info().rss - before < 16 << 20
