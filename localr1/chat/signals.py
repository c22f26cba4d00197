"""Ctrl-C while the model writes: once ends the answer at the next token, twice ends the program.

Signals only, the terminal stays in its normal mode, so this also works for `kill -INT`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C again although the answer is already being stopped: the user wants out."""


@contextmanager
def stop_on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGINT; raise `SecondInterrupt` at the second.

    Only the main thread gets signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise SecondInterrupt
        asked = True
        stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile off the screen (`^C` too); the next prompt reads it.

    Enter stays Enter: the terminal would make it a newline, which the prompt does not send.
    """
    try:
        import termios
    except ImportError:  # not a Unix: the keys are echoed, nothing else differs
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    quiet = termios.tcgetattr(fd)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
