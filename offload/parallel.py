"""Work on the pieces of files in threads, watched from one generator.

The threads run only while somebody iterates: an error, a Ctrl-C or a closed generator stops them at
their next piece and waits for them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

PIECE = 8 << 20  # bytes: big enough for a disk's full speed, small enough to stop soon


@dataclass(frozen=True, slots=True)
class Piece:
    """`nbytes` from `offset` of the file number `file`."""

    file: int
    offset: int
    nbytes: int


def pieces(spans: Sequence[Sequence[tuple[int, int]]], piece: int = PIECE) -> list[Piece]:
    """All pieces of the `spans` (begin, end) of each file, in order."""
    return [
        Piece(file, offset, min(piece, end - offset))
        for file, parts in enumerate(spans)
        for begin, end in parts
        for offset in range(begin, end, piece)
    ]


def reader_threads() -> int:
    """Enough to keep a fast disk's queue full; they wait more than they compute."""
    return max(4, min(16, os.cpu_count() or 4))


def work_through(todo: Sequence[Piece], work: Callable[[Piece], None]) -> Iterator[int]:
    """Call `work` on every piece, yielding the bytes done so far after each.

    An error of `work` ends it and is raised here.
    """
    ended: SimpleQueue[Piece | BaseException] = SimpleQueue()
    left, lock, stop = iter(todo), threading.Lock(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            with lock:
                piece = next(left, None)
            if piece is None:
                return
            try:
                work(piece)
            except BaseException as error:
                ended.put(error)
                return
            ended.put(piece)

    threads = [
        threading.Thread(target=run, name=f"offload-{i}")
        for i in range(min(reader_threads(), len(todo)))
    ]
    done = 0
    try:
        for thread in threads:
            thread.start()
        for _ in todo:
            item = ended.get()
            if isinstance(item, BaseException):
                raise item
            done += item.nbytes
            yield done
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
