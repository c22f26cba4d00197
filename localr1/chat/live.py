"""Lines at the bottom of a terminal that are drawn again and again, and gone without a trace.

Every line is cut to the terminal's width, so that a line is a row and can be counted. A terminal
that folds lines anew when its window narrows may keep a piece of them; hence the 79 columns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from localr1.chat.terminal import can_colour, can_move_cursor, columns

_REDRAW_SECONDS = 0.1
_MAX_COLUMNS = 79
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


class LiveLines:
    """`draw` puts lines where the last ones were, `erase` takes them away. Dim where possible.

    The cursor must be at the beginning of an empty line at the first `draw`; after `erase` it is
    there again. On streams that cannot move the cursor (`can_draw`) nothing is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.can_draw = can_move_cursor(stream)
        self._dim, self._reset = (_DIM, _RESET) if can_colour(stream) else ("", "")
        self._rows = 0
        self._drawn_at = -_REDRAW_SECONDS

    def due(self) -> bool:
        """Whether enough time has passed for drawing anew to be worth it."""
        return self.can_draw and time.monotonic() - self._drawn_at >= _REDRAW_SECONDS

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines` (harmless text without newlines) instead of what was drawn before."""
        if not self.can_draw:
            return
        width = min(columns(self._stream) - 1, _MAX_COLUMNS)  # the last cell would move the cursor
        lines = [_cut(line, width) for line in lines[: max(_rows(self._stream) - 1, 1)]]
        text = "\n".join(f"\r{self._dim}{line}{self._reset}\x1b[K" for line in lines)
        self._stream.write(self._home() + text + "\x1b[J")
        self._stream.flush()
        self._rows = len(lines)
        self._drawn_at = time.monotonic()

    def erase(self) -> None:
        """Take the lines away."""
        if self._rows:
            self._stream.write(self._home() + "\r\x1b[J")
            self._stream.flush()
            self._rows = 0

    def _home(self) -> str:
        return f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""


def _cut(line: str, width: int) -> str:
    line = line.replace("\t", "    ")
    return line if cell_len(line) <= width else set_cell_size(line, max(width, 0)).rstrip()


def _rows(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (OSError, ValueError):
        return 24
