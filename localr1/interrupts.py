"""SIGINT kept back for a while, for work that an exception at any point would tear apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class HeldInterrupts:
    """Context manager for what must not be torn apart: SIGINT raises KeyboardInterrupt at its end.

    `pending`: one has come; code in between may take it back. `react` is called when one comes.
    """

    def __init__(self) -> None:
        self.pending = False
        self.react: Callable[[], object] | None = None
        self._main = threading.current_thread() is threading.main_thread()

    def check(self) -> None:
        """Raise KeyboardInterrupt if one has come: here nothing would be torn apart."""
        if self.pending:
            raise KeyboardInterrupt

    def __enter__(self) -> HeldInterrupts:
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self.pending = True
        if self.react is not None:
            self.react()
