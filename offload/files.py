"""Files that are read while nothing is taken for granted: they may shrink, and disks fail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from offload import syscalls
from offload.errors import FileChanged, Unreadable

_AGAIN = "start again when nothing writes to the file any more"


class FileReader:
    """Open files of known sizes, read at any place by any thread. A context manager."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self._paths, self._sizes = paths, sizes
        self.descriptors: list[int] = []

    def __enter__(self) -> FileReader:
        try:
            for path, size in zip(self._paths, self._sizes, strict=True):
                self.descriptors.append(_open(path))
                found = os.fstat(self.descriptors[-1]).st_size
                if found != size:
                    raise _changed(path, size, found)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def read(self, file: int, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset` of a file. Raises FileChanged, Unreadable.

        Signals need no care: Python repeats an interrupted call.
        """
        path, done = self._paths[file], 0
        while done < len(into):
            try:
                got = os.preadv(self.descriptors[file], [into[done:]], offset + done)
            except OSError as error:
                raise Unreadable(f"cannot read {path.name}: {error.strerror}") from error
            if got == 0:
                raise _changed(path, self._sizes[file], offset + done)
            done += got

    def forget(self, file: int, offset: int = 0, nbytes: int = 0) -> None:
        """Let the page cache drop what was read; 0 bytes: to the end of the file."""
        syscalls.forget(self.descriptors[file], offset, nbytes)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise Unreadable(f"cannot read {path.name}: {error.strerror}") from error


def _changed(path: Path, before: int, now: int) -> FileChanged:
    return FileChanged(
        f"{path.name} changed while it was loaded: {before:,} bytes became {now:,}", _AGAIN
    )
