"""Where weights live in RAM: *mapped* in the page cache, or *owned* in memory of our own.

    weights = holder(name, {path: its read-only mmap, ...})
    for done, total in weights.load():       # bytes; the reading happens while this runs
        ...
    weights.files                            # {path: buffer}: the files' bytes, unchanged

Spans of the files may be named, and then only they are brought in: what a GPU holds needs no RAM.

Mapped, a second start is instant, because the page cache outlives the process, and several
processes share one copy. Owned, the memory has huge pages, is not given up under pressure and does
not notice what happens to the file afterwards. Either way the bytes are in RAM once. Not here:
which of the two pays (the planner's choice), and what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from offload.errors import Unknown
from offload.mapped import Mapped
from offload.owned import Owned
from offload.syscalls import MADV_DONTNEED, PAGE, Buffer, address_of, forget, madvise

AUTO, MAPPED, OWNED = NAMES = ("auto", "mapped", "owned")


class Residency(Protocol):
    """Weight files on their way into RAM, and there."""

    @property
    def files(self) -> Mapping[Path, Buffer]:
        """The files' bytes; complete when `load` has run to its end, but for other spans than those
        asked for: those bytes may be anything.
        """
        ...

    def load(self) -> Iterator[tuple[int, int]]:
        """Bring the files in, yielding (bytes done, bytes in all). Raises ResidencyError."""
        ...


Spans = Mapping[Path, Sequence[tuple[int, int]]]


def holder(name: str, files: Mapping[Path, Buffer], spans: Spans | None = None) -> Residency:
    """What holds open files, given as read-only maps, in the residency `name` ("auto": mapped).

    `spans` are the (begin, end) of each file that are wanted, in bytes; None: all. Raises Unknown
    for another name.
    """
    if spans is None:
        spans = {path: [(0, len(data))] for path, data in files.items()}
    wanted = [_whole_pages(spans.get(path, ()), len(data)) for path, data in files.items()]
    if name in (AUTO, MAPPED):
        return Mapped(files, wanted)
    if name == OWNED:
        return Owned(files, wanted)
    raise Unknown(f"{name!r} is no residency", f"there are {', '.join(NAMES)}")


def _whole_pages(spans: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The same in whole pages, in order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        begin, end = begin // PAGE * PAGE, min(-(-end // PAGE) * PAGE, size)
        if joined and begin <= joined[-1][1]:
            begin, end = joined[-1][0], max(end, joined.pop()[1])
        joined.append((begin, end))
    return joined


def release(files: Mapping[Path, Buffer], spans: Spans) -> None:
    """Let the page cache forget `spans` of mapped files; as far as whole pages go, and as a hint
    that the system may leave unheard.
    """
    for path, parts in spans.items():
        address = address_of(files[path])
        with suppress(OSError), open(path, "rb") as file:
            for begin, end in parts:
                begin, end = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
                if begin < end:
                    madvise(address + begin, end - begin, MADV_DONTNEED)
                    forget(file.fileno(), begin, end - begin)
