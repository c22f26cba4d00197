"""A call into llama.cpp in a thread of its own, for two reasons.

The thread that asked hears of Ctrl-C meanwhile. And where llama.cpp finds a contradiction, such as
in the metadata of a damaged file, and would end the process, only the call ends.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from localr1.errors import LocalR1Error


class Crashed(LocalR1Error):
    """llama.cpp would have ended the process; nothing of the model may be used any more."""


class Job:
    """A running call, its result or what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._ended = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(function, args), daemon=True).start()

    def done(self, seconds: float | None = None) -> bool:
        """Wait so long at most, or for the end; whether the call has ended."""
        return self._ended.wait(seconds)

    def result(self) -> Any:
        """Wait for the end; what the call returned. Raises what it raised, or Crashed."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        _jobs[threading.get_ident()] = self
        try:
            self._result = function(*args)
        except BaseException as error:  # `result` raises it where somebody waits for it
            self._error = error
        finally:
            del _jobs[threading.get_ident()]
            self._ended.set()

    def crash(self, message: str) -> None:
        """End with `Crashed`, in the eyes of those who wait."""
        self._error = Crashed(f"llama.cpp gave up: {message}")
        self._ended.set()


_jobs: dict[int, Job] = {}  # by the thread that runs them


def on_abort(message: bytes) -> None:
    """ggml's callback, in the thread that is about to end the process."""
    text = " ".join(message.decode("utf-8", "replace").split()).rpartition("/")[2]
    job = _jobs.pop(threading.get_ident(), None)
    if job is None:
        print(f"error: llama.cpp ends the program: {text}", file=sys.stderr, flush=True)
        return
    job.crash(text)
    threading.Event().wait()  # for ever: there is no way back through llama.cpp's functions
