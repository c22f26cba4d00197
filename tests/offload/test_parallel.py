"""Pieces cover files exactly; threads end with whoever watches them."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.parallel import Piece, pieces, work_through


@given(st.lists(st.integers(0, 5000), max_size=5), st.integers(1, 700))
def test_pieces_cover_every_byte_once(sizes: list[int], piece: int) -> None:
    cut = pieces([[(0, size)] for size in sizes], piece)
    for file, size in enumerate(sizes):
        mine = [p for p in cut if p.file == file]
        assert [p.offset for p in mine] == list(range(0, size, piece))
        assert sum(p.nbytes for p in mine) == size
        assert all(0 < p.nbytes <= piece for p in mine)


def test_every_piece_is_worked_on_once() -> None:
    todo = pieces([[(0, 1000)], [], [(0, 50)]], 7)
    seen: list[Piece] = []
    done = list(work_through(todo, seen.append))
    assert sorted(seen, key=lambda p: (p.file, p.offset)) == todo
    assert done[-1] == 1050 and done == sorted(done)
    assert list(work_through([], seen.append)) == []


def test_an_error_ends_the_work() -> None:
    worked: list[Piece] = []

    def work(piece: Piece) -> None:
        worked.append(piece)
        raise ZeroDivisionError

    todo = pieces([[(0, 100)]], 1)
    with pytest.raises(ZeroDivisionError):
        list(work_through(todo, work))
    assert len(worked) < len(todo)
    assert not named()


def test_a_ctrl_c_ends_the_threads() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(work_through(pieces([[(0, 1000)]], 1), lambda piece: time.sleep(0.05)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not named()


def named() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("offload")]
