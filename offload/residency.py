"""Where weights live in RAM: *mapped* in the page cache, or *owned* in memory of our own.

    weights = holder(name, {path: its read-only mmap, ...})
    for done, total in weights.load():       # bytes; the reading happens while this runs
        ...
    weights.files                            # {path: buffer}: the files' bytes, unchanged

Mapped, a second start is instant, because the page cache outlives the process, and several
processes share one copy. Owned, the memory has huge pages, is not given up under pressure and does
not notice what happens to the file afterwards. Either way the bytes are in RAM once. Not here:
which of the two pays (the planner's choice), and what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from offload.errors import Unknown
from offload.mapped import Mapped
from offload.owned import Owned
from offload.syscalls import Buffer

AUTO, MAPPED, OWNED = NAMES = ("auto", "mapped", "owned")


class Residency(Protocol):
    """Weight files on their way into RAM, and there."""

    @property
    def files(self) -> Mapping[Path, Buffer]:
        """The files' bytes; complete when `load` has run to its end."""
        ...

    def load(self) -> Iterator[tuple[int, int]]:
        """Bring the files in, yielding (bytes done, bytes in all). Raises ResidencyError."""
        ...


def holder(name: str, files: Mapping[Path, Buffer]) -> Residency:
    """What holds open files, given as read-only maps, in the residency `name` ("auto": mapped).

    Raises Unknown for another name.
    """
    if name in (AUTO, MAPPED):
        return Mapped(files)
    if name == OWNED:
        return Owned(files)
    raise Unknown(f"{name!r} is no residency", f"there are {', '.join(NAMES)}")
