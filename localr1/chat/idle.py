"""Work for the time in which the user types: in a thread of its own, gone when Enter is pressed.

The engine serves one at a time: whoever wants it calls `stop` first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor


class Idle:
    """`start` an iterator, `stop` it: it ends at its next step."""

    def __init__(self) -> None:
        # One thread for all the work: torch keeps a pool of its own for each thread that calls it.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="idle")
        self._stopped = threading.Event()
        self._running: Future[None] | None = None

    def start(self, work: Iterator[object]) -> None:
        """Begin with `work`, after what ran before."""
        self.stop()
        self._stopped.clear()
        self._running = self._pool.submit(self._run, work)

    def stop(self) -> None:
        """Wait until the work has ended. Raises what it raised."""
        if self._running is None:
            return
        self._stopped.set()
        problem = self._running.exception()  # an interrupt of this wait leaves it to the next one
        self._running = None
        if problem is not None:
            raise problem

    def _run(self, work: Iterator[object]) -> None:
        try:
            while not self._stopped.is_set():
                if next(work, self) is self:
                    return
        finally:
            if hasattr(work, "close"):
                work.close()
