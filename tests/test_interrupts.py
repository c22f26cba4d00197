"""Ctrl-C that is kept back: nothing is torn, nothing is lost."""

from __future__ import annotations

import signal
import threading

import pytest

from localr1.interrupts import HeldInterrupts


def test_it_comes_at_the_end() -> None:
    before, steps = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        held.react = lambda: steps.append("react")
        signal.raise_signal(signal.SIGINT)
        steps.append("after")
    assert steps == ["react", "after"]
    assert signal.getsignal(signal.SIGINT) == before


def test_it_comes_where_it_may() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), HeldInterrupts() as held:
        for step in range(3):
            if step == 1:
                signal.raise_signal(signal.SIGINT)
            steps.append(step)
            held.check()
    assert steps == [0, 1]


def test_it_can_be_taken_back() -> None:
    with HeldInterrupts() as held:
        signal.raise_signal(signal.SIGINT)
        held.pending = False


def test_an_error_goes_first() -> None:
    with pytest.raises(ValueError, match="mine"), HeldInterrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")


def test_threads_get_no_signals() -> None:
    before, problems = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with HeldInterrupts() as held:
            held.check()
            problems.append(signal.getsignal(signal.SIGINT) != before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == [False]
