"""One line on a terminal that says how far long work is, and is gone when the work is done.

Takes the `Progress` events of the loader, of the kernels' first compilation and of `verify`. On
anything but a terminal it writes nothing.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from localr1.events import Progress

_REDRAW_SECONDS = 0.1
_GB, _MB = 1e9, 1e6


class ProgressLine:
    """Context manager; `show` draws an event at most ten times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._stage = ""
        self._began = 0.0
        self._drawn = 0.0

    def show(self, event: Progress) -> None:
        """Draw how far the work is, with the speed of bytes and the time left once known."""
        now = time.monotonic()
        if event.stage != self._stage:
            self._stage, self._began = event.stage, now
        if not self._live or now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        self._stream.write(f"\r\x1b[K{line(event, now - self._began)}"[:79])
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def line(event: Progress, seconds: float) -> str:
    """The text for an event, `seconds` after its stage began."""
    left = seconds * (event.total - event.done) / event.done if event.done else 0.0
    tail = f"   {duration(left)} left" if left >= 1 else ""
    if event.unit == "bytes":
        unit, name = _unit(event.total)
        amount = f"{event.done / unit:.1f} of {event.total / unit:.1f} {name}"
        if seconds > 0:
            speed = event.done / seconds
            unit, name = _unit(speed)
            amount += f"   {speed / unit:.1f} {name}/s"
    else:
        amount = f"{event.done} of {event.total} {event.unit}"
    return f"{event.stage}   {amount}{tail}"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `1 min 31 s`, `2 h 5 min`."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _unit(nbytes: float) -> tuple[float, str]:
    return (_GB, "GB") if nbytes >= _GB else (_MB, "MB")
