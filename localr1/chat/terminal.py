"""What a view needs to know about the stream it writes to, and how model text is made harmless.

No drawing here; that is views.py.
"""

from __future__ import annotations

import os
import shutil
from typing import TextIO

# C0 and C1 controls other than newline and tab could move the cursor, set the clipboard or recolour
# the screen; bidirectional controls could make text read differently from what it says.
_CONTROLS = [*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]
_BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_STRIP = dict.fromkeys([*_CONTROLS, *_BIDI])


def clean(text: str) -> str:
    """`text` without the characters a terminal would obey instead of show."""
    return text.translate(_STRIP)


def can_move_cursor(stream: TextIO) -> bool:
    """Whether escape sequences mean anything to whoever reads `stream`."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def can_colour(stream: TextIO) -> bool:
    """Whether to style text: a terminal that understands it and a user who has not said no."""
    return can_move_cursor(stream) and not os.environ.get("NO_COLOR")


def columns(stream: TextIO) -> int:
    """Width of the terminal behind `stream`, read anew each time because windows are resized."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def count(number: int, noun: str) -> str:
    """`1 token`, `1,204 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(tokens: int) -> str:
    """`950`, `1.8k`, `32k`, with the k of context sizes: 1,024."""
    if tokens < 1024:
        return str(tokens)
    size = tokens / 1024
    return f"{size:.1f}".removesuffix(".0") + "k" if size < 9.95 else f"{size:.0f}k"
