"""How fast the disk of a folder is read, and what is free on it.

Read as residency reads: in several threads, past the page cache where the file system lets us. Not
here: reading models (offload.owned, offload.mapped).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from offload import syscalls
from offload.parallel import PIECE, Piece, pieces, work_through

LEAST = 64 << 20  # bytes of a file that is worth reading
_MOST = 1 << 30  # bytes that are read of a file that lies there
_MOST_WRITTEN = 256 << 20  # and of one that we write ourselves
_SYNCED = 32 << 20  # bytes of it that are written before a look at the clock
_WRITE_SECONDS, _READ_SECONDS = 1.5, 1.5
_ROUNDS = 4
_ROOM = 4  # a file of our own takes no more than this part of the free space


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that is there."""
    whole = folder.expanduser().absolute()
    return next(path for path in (whole, *whole.parents) if os.path.isdir(path))


def free_bytes(folder: Path) -> int:
    """Bytes that a user may still write where `folder` is, or would be."""
    return shutil.disk_usage(existing(folder)).free


def read_bandwidth(folder: Path) -> float | None:
    """Bytes/second, of the largest model in `folder`, or of a file that exists for a moment.

    None where that cannot be found out: nothing to read, and no right or no room to write. At most
    about three seconds.
    """
    if not hasattr(os, "preadv"):
        return None
    try:
        with _sample(existing(folder)) as (descriptor, start, nbytes):
            return _speed(descriptor, start, nbytes) if nbytes else None
    except OSError:
        return None


@contextmanager
def _sample(folder: Path) -> Iterator[tuple[int, int, int]]:
    """(descriptor, offset, bytes) of something to read."""
    # Two levels: whoever names the root of a big disk does not want it searched.
    models = [*folder.glob("*.gguf"), *folder.glob("*/*.gguf")]
    sizes = {path: path.stat().st_size for path in models if path.is_file()}
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    if largest is not None and sizes[largest] >= LEAST:
        nbytes = min(_MOST, sizes[largest] // PIECE * PIECE)
        with largest.open("rb") as model:
            yield model.fileno(), (sizes[largest] - nbytes) // 2 // PIECE * PIECE, nbytes
        return
    # Without a name where the system can do that: nothing is left behind even by a kill.
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file.fileno(), 0, _write(file.fileno(), free_bytes(folder) // _ROOM)


def _write(descriptor: int, room: int) -> int:
    """Write what time and `room` allow, down to the disk; returns the bytes."""
    block = os.urandom(PIECE)  # nothing that a file system could compress
    began, done = time.perf_counter(), 0
    while done + PIECE <= min(room, _MOST_WRITTEN):
        os.pwrite(descriptor, block, done)
        done += PIECE
        if done % _SYNCED == 0:
            os.fsync(descriptor)
            if time.perf_counter() - began > _WRITE_SECONDS:
                break
    os.fsync(descriptor)  # only clean pages can be dropped
    return done


def _speed(descriptor: int, start: int, nbytes: int) -> float:
    syscalls.forget(descriptor, start, nbytes)
    try:
        # The same file once more: it may have no name.
        direct = syscalls.open_direct(f"/proc/self/fd/{descriptor}")
    except OSError:
        return _best_of_rounds(descriptor, start, nbytes)
    try:
        return _best_of_rounds(direct, start, nbytes)
    except OSError:  # opened, but not read
        return _best_of_rounds(descriptor, start, nbytes)
    finally:
        os.close(direct)


def _best_of_rounds(descriptor: int, start: int, nbytes: int) -> float:
    """Bytes/second; the best, as other programs may use the disk meanwhile."""
    until, best = time.perf_counter() + _READ_SECONDS, 0.0
    for _ in range(_ROUNDS):
        best = max(best, _round(descriptor, start, nbytes, until))
        if time.perf_counter() > until:
            break
    return best


def _round(descriptor: int, start: int, nbytes: int, until: float) -> float:
    """Bytes/second of reading in pieces, until all is read or the time is over."""
    read = _reader(descriptor, start)
    began, speed = time.perf_counter(), 0.0
    for done in work_through(pieces([[(0, nbytes)]]), read):
        now = time.perf_counter()
        speed = done / (now - began)
        if now > until:
            break
    syscalls.forget(descriptor, start, nbytes)
    return speed


def _reader(descriptor: int, start: int) -> Callable[[Piece], None]:
    # All threads read into the same memory, which nobody looks at.
    target = syscalls.anonymous(PIECE)

    def read(piece: Piece) -> None:
        done = 0
        while done < piece.nbytes:
            got = os.preadv(
                descriptor, [memoryview(target)[done : piece.nbytes]], start + piece.offset + done
            )
            if got == 0:
                raise OSError("the file became shorter")
            done += got

    return read
