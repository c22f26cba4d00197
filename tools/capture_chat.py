"""Puts the real screen of a chat with tiny-r1 into docs/chat.md, from loading to the answer.

    python tools/capture_chat.py

A pseudo-terminal of 80 x 16 runs the program; what it wrote is played into a terminal emulator, and
four moments are copied between the markers in the document.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pyte

DOCUMENT = Path(__file__).parent.parent / "docs" / "chat.md"
BEGIN, END = "<!-- captured by tools/capture_chat.py -->\n", "<!-- end of capture -->"
QUESTION = "What is 347 + 586?"
COLUMNS, ROWS = 80, 16
SECONDS = 300  # compiling the kernels first, perhaps


def record() -> str:
    """Everything that the program writes while it answers one question."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": home}
        command = ["-m", "localr1", "chat", "tiny-r1", "--seed", "1"]
        child = pexpect.spawn(
            sys.executable, command, env=environment, dimensions=(ROWS, COLUMNS), encoding="utf-8"
        )
        screen = pyte.Screen(COLUMNS, ROWS)
        screen.write_process_input = child.send  # prompt_toolkit asks where the cursor is
        stream, raw, asked = pyte.Stream(screen), "", False
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and raw.count("context ") < 1:
            try:
                data = child.read_nonblocking(4096, timeout=0.05)
            except pexpect.TIMEOUT:
                data = ""
            raw += data
            stream.feed(data)
            if not asked and screen.display[screen.cursor.y].strip() == ">":
                child.send(QUESTION + "\r")
                asked = True
        child.close(force=True)
    if "context " not in raw:
        sys.exit(f"no answer within {SECONDS} s; what came:\n{raw}")
    return raw


def frames(raw: str) -> list[list[str]]:
    """The screen after each sequence that changed it."""
    screen = pyte.Screen(COLUMNS, ROWS)
    screen.write_process_input = lambda data: None
    stream, found = pyte.Stream(screen), []
    for piece in re.split(r"(?=\r)", raw):
        stream.feed(piece)
        shown = "\n".join(line.rstrip() for line in screen.display).strip().split("\n")
        if not found or shown != found[-1]:
            found.append(shown)
    return found


def moments(found: list[list[str]]) -> list[list[str]]:
    """Loading, the fullest window on the thought, the fold, and the end."""

    def with_line(start: str) -> list[list[str]]:
        return [frame for frame in found if any(line.startswith(start) for line in frame)]

    thinking = max(with_line("Thinking"), key=len)
    return [with_line("Loading")[0], thinking, with_line("Thought for")[0], found[-1]]


def main() -> None:
    """Rewrite the part of the document between the markers."""
    blocks = "\n".join(
        "```\n" + "\n".join(shown) + "\n```\n" for shown in moments(frames(record()))
    )
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{blocks}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
