"""A mapped file and a reading position in it: GGUF's numbers, strings, values, table rows.

Every read is checked against the file's end and every announced count against the room left, so
the time and memory a file can cost are bounded by its size.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from localr1.errors import BadFile, LocalR1Error, Unsupported

DOWNLOAD_AGAIN = "download the file again, or compare its checksum with the publisher's"
_MAX_DIMS = 4
_LONGEST_NAME = 256  # keys and tensor names; real ones stay below 64
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
# GGUF value type -> numpy type; strings and arrays are read apart.
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


def map_file(path: Path) -> mmap.mmap:
    """The whole file, read-only, as memory; LocalR1Error where it cannot be read."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap's word for an empty file
        raise BadFile(f"{path.name} is empty", DOWNLOAD_AGAIN) from error
    except OSError as error:
        raise LocalR1Error(f"cannot read {path}: {error.strerror}") from error


class Cursor:
    """A reading position in the mapped file; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name
        self.size = len(data)
        self.at = 0

    def damaged(self, why: str) -> BadFile:
        return BadFile(f"{self.name} is damaged: {why}", DOWNLOAD_AGAIN)

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        if nbytes > self.size - self.at:
            raise BadFile(f"{self.name} is cut short inside {what}", DOWNLOAD_AGAIN)
        start, self.at = self.at, self.at + nbytes
        return self.data[start : self.at]

    def number(self, code: str, what: str) -> int:
        """The next number in struct's notation `code`."""
        return int(struct.unpack(code, self.take(struct.calcsize(code), what))[0])

    def count(self, least: int, what: str) -> int:
        """A u64 count of things that take at least `least` bytes each."""
        n = self.number("<Q", f"the number of {what}")
        if n * least > self.size - self.at:
            raise self.damaged(f"it announces {n:,} {what}, more than it has room for")
        return n

    def string(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def name_of(self, what: str) -> str:
        """A name that may appear in messages: short, and nothing that could steer a terminal."""
        name = self.string(what)
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise self.damaged(f"{what} is no name: {name[:40]!a}")
        return name

    def strings(self, n: int, what: str) -> list[str]:
        """`n` strings; a tight loop, since R1's vocabulary and merges are 257,000 of them."""
        data, size, at, unpack = self.data, self.size, self.at, struct.Struct("<Q").unpack_from
        values = []
        try:
            for _ in range(n):
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > size:
                    break
                values.append(data[start:at].decode())
        except struct.error:
            pass  # fewer than 8 bytes are left; the count below says so
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} holds text that is not UTF-8") from error
        if len(values) < n:
            raise BadFile(f"{self.name} is cut short inside {what}", DOWNLOAD_AGAIN)
        self.at = at
        return values

    def value(self, key: str) -> Any:
        """A metadata value: int, float, bool, str or a list of one of these."""
        what = f"the value of {key}"
        kind = self.number("<I", what)
        if kind == _STRING:
            return self.string(what)
        if kind == _FLOAT32:  # the shortest decimal that means it: 1e-06, not 9.99999997e-07
            return float(str(np.frombuffer(self.take(4, what), "<f4")[0]))
        if kind != _ARRAY:
            return self.numbers(kind, 1, what)[0]
        kind = self.number("<I", what)
        if kind == _STRING:
            return self.strings(self.count(8, f"elements in {key}"), what)
        return self.numbers(kind, self.count(1, f"elements in {key}"), what)

    def numbers(self, kind: int, n: int, what: str) -> list[Any]:
        """`n` numbers or booleans of the GGUF value type `kind`."""
        if kind not in _NUMBERS:
            raise Unsupported(
                f"{self.name}: {what} has the type {kind}, which is not known",
                "the file is damaged, or newer than this program: try a newer localr1",
            )
        dtype = np.dtype(_NUMBERS[kind])
        values = np.frombuffer(self.take(n * dtype.itemsize, what), dtype)
        return list((values != 0 if kind == _BOOL else values).tolist())

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape in numpy's order, type, offset) of the next row of the tensor table."""
        name = self.name_of("a tensor's name")
        n_dims = self.number("<I", f"the shape of {name}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.damaged(f"the tensor {name} has {n_dims} dimensions")
        dims = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims, f"the shape of {name}"))
        if 0 in dims or max(dims) >= 1 << 62:
            raise self.damaged(f"the tensor {name} has the shape {dims}")
        kind, offset = struct.unpack("<IQ", self.take(12, f"the place of {name}"))
        return name, dims[::-1], kind, offset
