"""Owned residency: files read into private memory with huge pages, and out of the page cache.

O_DIRECT goes past the page cache. Where a file system refuses it, or a piece lies in the cache
already (then copying is quicker than reading again), ordinary reads are taken; what the cache held
of a piece is dropped behind them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from offload import syscalls
from offload.errors import NoRoom, Unknown
from offload.files import FileReader
from offload.parallel import Piece, pieces, work_through
from offload.syscalls import HUGE_PAGE, PAGE, Buffer


class Owned:
    """Copies of the files in our own memory, freed with the last view of it; see
    offload.residency.
    """

    def __init__(
        self, files: Mapping[Path, Buffer], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        if not hasattr(os, "preadv"):
            raise Unknown("owned residency is not available on this system", "use mapped")
        self.files: Mapping[Path, Buffer] = {}
        self._maps, self._todo = files, pieces(spans)

    def load(self) -> Iterator[tuple[int, int]]:
        """Read what is wanted in several threads; the rest of the memory is never touched.

        Raises FileChanged, Unreadable or NoRoom; the memory is given back when that happens, or
        when the iterator is closed early.
        """
        sizes = [len(data) for data in self._maps.values()]
        memory = [_huge(size) for size in sizes]
        with FileReader(list(self._maps), sizes) as reader, ExitStack() as stack:
            copy = _Copy(reader, self._maps, memory, stack)
            total = sum(piece.nbytes for piece in self._todo)
            for done in work_through(self._todo, copy.fill):
                yield done, total
            for piece in self._todo:  # what the kernel read ahead of a reader
                reader.forget(piece.file, piece.offset, piece.nbytes)
        views = [memoryview(data)[:size] for data, size in zip(memory, sizes, strict=True)]
        self.files = {path: view.toreadonly() for path, view in zip(self._maps, views, strict=True)}
        self._maps = {}


class _Copy:
    """The reading of one load: which way each piece takes."""

    def __init__(
        self,
        reader: FileReader,
        maps: Mapping[Path, Buffer],
        memory: list[mmap.mmap],
        stack: ExitStack,
    ) -> None:
        self._reader = reader
        self._memory = [memoryview(data) for data in memory]
        self._addresses = [syscalls.address_of(data) for data in maps.values()]
        self._direct = [_direct(path, stack) for path in maps]

    def fill(self, piece: Piece) -> None:
        """Copy one piece of a file to its place in our memory."""
        target = self._memory[piece.file][piece.offset :]
        done = 0 if self._is_cached(piece) else self._read_directly(piece, target)
        if done < piece.nbytes:
            rest = target[done : piece.nbytes]
            self._reader.read(piece.file, piece.offset + done, rest)
        self._reader.forget(piece.file, piece.offset, piece.nbytes)

    def _is_cached(self, piece: Piece) -> bool:
        address = self._addresses[piece.file] + piece.offset
        try:
            return syscalls.resident_pages(address, piece.nbytes) == -(-piece.nbytes // PAGE)
        except OSError:
            return False

    def _read_directly(self, piece: Piece, target: memoryview) -> int:
        """Bytes read past the page cache: all, or fewer where the file system has its own mind."""
        descriptor = self._direct[piece.file]
        if descriptor is None:
            return 0
        whole_pages = -(-piece.nbytes // PAGE) * PAGE
        try:
            return os.preadv(descriptor, [target[:whole_pages]], piece.offset)
        except OSError:
            self._direct[piece.file] = None  # refused at the first read, or failing: the plain
            return 0  # read that follows goes on or tells what is wrong


def _direct(path: Path, stack: ExitStack) -> int | None:
    try:
        descriptor = syscalls.open_direct(path)
    except OSError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor


def _huge(nbytes: int) -> mmap.mmap:
    """Private memory for `nbytes` and the rest of the last page, in huge pages if we may."""
    size = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    try:
        memory = syscalls.anonymous(size)
    except (OSError, ValueError, OverflowError) as error:
        raise NoRoom(
            f"the system refuses {nbytes / (1 << 30):.1f} GiB of memory", "use mapped residency"
        ) from error
    with suppress(OSError):
        syscalls.madvise(syscalls.address_of(memory), size, syscalls.MADV_HUGEPAGE)
    return memory
