"""A file that is still coming in: its bytes on disk, and their sum so far."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from localr1.errors import BadFile
from localr1.repository import RemoteFile

_CHUNK = 8 << 20  # bytes read at a time
_AGAIN = "it was removed: pull again, and if it happens twice, over another network or mirror"


class Sums(NamedTuple):
    """The sha256 of a content as hex, and whether it is the content that the hub promised."""

    sha256: str
    is_right: bool


class _Digest:
    """Sums a content as it comes. Small files of a repository have no sha256, but git's id."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % file.nbytes, usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        if self._file.sha256 is None:
            self._git.update(data)

    def sums(self) -> Sums:
        sha256 = self._sha256.hexdigest()
        if self._file.sha256 is not None:
            return Sums(sha256, sha256 == self._file.sha256)
        return Sums(sha256, self._git.hexdigest() == self._file.blob_id)


def sum_of(path: Path, file: RemoteFile) -> Sums:
    """The sums of a file that is here, against what the hub says of it."""
    digest = _Digest(file)
    with path.open("rb", buffering=0) as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.sums()


class Part:
    """Context manager over a half file: `write` appends, `become` checks and names it."""

    def __init__(self, path: Path, file: RemoteFile, checked: Callable[[int], None]) -> None:
        """Opens or makes `path` and sums what it holds; `checked` hears of how many bytes."""
        self._path, self._file = path, file
        self._data = path.open("a+b", buffering=0)
        self._digest = _Digest(file)
        self.nbytes = 0
        if path.stat().st_size > file.nbytes:
            self.restart()
        self._data.seek(0)
        while chunk := self._data.read(_CHUNK):
            self._digest.update(chunk)
            self.nbytes += len(chunk)
            checked(len(chunk))

    def write(self, data: bytes) -> None:
        """Append. Raises `BadFile` if that is more than was promised, OSError without room."""
        if self.nbytes + len(data) > self._file.nbytes:
            self._drop()
            raise BadFile(f"the hub sends more of {self._file.name} than it announced", _AGAIN)
        view = memoryview(data)
        while view:
            written = self._data.write(view)
            self._digest.update(view[:written])
            self.nbytes += written
            view = view[written:]

    def restart(self) -> None:
        """Begin anew."""
        self._data.truncate(0)
        self._digest = _Digest(self._file)
        self.nbytes = 0

    def become(self, path: Path) -> Sums:
        """Give the file its name, if its sum is right; else remove it and raise `BadFile`."""
        sums = self._digest.sums()
        if not sums.is_right:
            self._drop()
            raise BadFile(f"{path.name} arrived with another checksum than the hub states", _AGAIN)
        os.fsync(self._data.fileno())  # the name must not outlive the content when power fails
        self._path.replace(path)
        return sums

    def _drop(self) -> None:
        self._path.unlink()

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.close()
