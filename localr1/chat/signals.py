"""Keys while the model writes: Ctrl-C ends the answer at the next token, twice the program;
Ctrl-\\ closes the thought.

Signals only, the terminal stays in its normal mode, so this also works for `kill -INT`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C again although the answer is already being stopped: the user wants out."""


@contextmanager
def handle_keys(stop: Callable[[], None], answer_now: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGINT, raise `SecondInterrupt` at the second; `answer_now` at each
    SIGQUIT.
    """
    asked = False

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise SecondInterrupt
        asked = True
        stop()

    with _handler("SIGINT", on_interrupt), _handler("SIGQUIT", lambda *_: answer_now()):
        yield


@contextmanager
def no_quit() -> Iterator[None]:
    """Let a Ctrl-\\ that comes when the answer has just ended not end the program."""
    with _handler("SIGQUIT", lambda *_: None):
        yield


@contextmanager
def _handler(name: str, function: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Only the main thread gets signals, and Windows knows no SIGQUIT; there this does nothing."""
    number = getattr(signal, name, None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, before)


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


def pending_keys() -> str:
    """What has been typed and not been read yet; it counts as read then. "" where none can be."""
    try:
        import termios
    except ImportError:
        return ""
    if not sys.stdin.isatty():
        return ""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    direct = termios.tcgetattr(fd)
    direct[3] &= ~(termios.ICANON | termios.ECHO)
    direct[6][termios.VMIN], direct[6][termios.VTIME] = 0, 0
    termios.tcsetattr(fd, termios.TCSANOW, direct)
    try:
        typed = os.read(fd, 4096).decode("utf-8", "replace")
        return typed.replace("\n", "\r")  # in its normal mode the terminal has turned Enter round
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
