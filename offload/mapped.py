"""Mapped residency: the page cache is the memory, and loading is filling it.

Pages that are in the cache already are only entered into the page table, which takes a fraction of
a second for 8 GiB and spares the first token as many page faults.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from offload import syscalls
from offload.files import FileReader
from offload.parallel import Piece, pieces, work_through
from offload.syscalls import Buffer

_SCRATCH = 1 << 20


class Mapped:
    """Files as they are mapped; see offload.residency."""

    def __init__(
        self, files: Mapping[Path, Buffer], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        self.files = files
        self._todo = pieces(spans)

    def load(self) -> Iterator[tuple[int, int]]:
        """Read ahead and populate, piece by piece in several threads.

        Raises FileChanged or Unreadable. A mapping must never be touched to find that out: behind
        the end of a file that shrank, that kills the process.
        """
        if not hasattr(os, "preadv"):
            return  # Windows: pages come when they are used
        sizes = [len(data) for data in self.files.values()]
        addresses = [syscalls.address_of(data) for data in self.files.values()]
        with FileReader(list(self.files), sizes) as reader:

            def bring(piece: Piece) -> None:
                if not _populated(addresses[piece.file] + piece.offset, piece.nbytes):
                    _read_through(reader, piece)

            total = sum(piece.nbytes for piece in self._todo)
            for done in work_through(self._todo, bring):
                yield done, total


def _populated(address: int, nbytes: int) -> bool:
    """Whether the kernel brought the pages in; not before Linux 5.14, nor past a file's end."""
    with suppress(OSError):  # only a hint: large reads instead of small ones
        syscalls.madvise(address, nbytes, syscalls.MADV_WILLNEED)
    try:
        syscalls.madvise(address, nbytes, syscalls.MADV_POPULATE_READ)
    except OSError:
        return False
    return True


def _read_through(reader: FileReader, piece: Piece) -> None:
    """Bring a piece into the page cache by reading it; says what is wrong where that fails."""
    scratch = memoryview(bytearray(min(_SCRATCH, piece.nbytes)))
    end = piece.offset + piece.nbytes
    for offset in range(piece.offset, end, _SCRATCH):
        reader.read(piece.file, offset, scratch[: min(_SCRATCH, end - offset)])
