"""A terminal for tests: a pseudo-terminal with a child in it and pyte as its screen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte


class Screen(pyte.HistoryScreen):
    """A screen that answers the child's questions, such as where the cursor is."""

    answer: Callable[[str], object] = staticmethod(lambda data: None)

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class ChildTerminal:
    """`python -m tests.chat.child ...` on a screen of `columns` x 24."""

    def __init__(self, home: Path, *arguments: str, columns: int = 80, **env: str) -> None:
        environment = {**os.environ, "HOME": str(home), "TERM": "xterm-256color", **env}
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", *({"NO_COLOR"} - env.keys())):
            environment.pop(name, None)
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "tests.chat.child", *arguments],
            env=environment,
            dimensions=(24, columns),
            encoding="utf-8",
            echo=True,
        )
        self.child.delaybeforesend = None
        self.raw = ""
        self.screen = Screen(columns, 24, history=5000)
        self.screen.answer = self.child.send
        self._stream = pyte.Stream(self.screen)

    def __enter__(self) -> ChildTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    def lines(self) -> list[str]:
        """What is on the screen, without blank lines."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def text(self) -> str:
        return "\n".join(self.lines())

    def scrolled(self) -> str:
        """What has left the screen at its top."""
        top = self.screen.history.top
        return "\n".join("".join(line[x].data for x in sorted(line)) for line in top) + "\n"

    def resize(self, columns: int) -> None:
        """What happens when someone pulls at the window's edge."""
        self.screen.resize(columns=columns)
        self.child.setwinsize(24, columns)

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def read(self, seconds: float) -> bool:
        """Feed what the child writes within `seconds` to the screen; False when it has ended."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def wait(self, shown: Callable[[ChildTerminal], bool] | str, seconds: float = 15) -> None:
        """Read until `shown` holds, or, if it is a text, is on the screen."""
        holds = (lambda t: shown in t.text()) if isinstance(shown, str) else shown
        end = time.monotonic() + seconds
        while not holds(self):
            alive = self.read(0.05)
            assert alive or holds(self), f"the child ended:\n{self.text()}"
            assert time.monotonic() < end, f"not shown in time:\n{self.text()}"

    def wait_prompt(self, seconds: float = 15) -> None:
        """Read until the cursor stands behind an empty prompt."""

        def at_prompt(terminal: ChildTerminal) -> bool:
            cursor = terminal.screen.cursor
            return terminal.screen.display[cursor.y].rstrip() == ">" and cursor.x == 2

        self.wait(at_prompt, seconds)

    def exit_code(self, seconds: float = 15) -> int:
        """Wait for the child to end."""
        end = time.monotonic() + seconds
        while self.read(0.05):
            assert time.monotonic() < end, f"still running:\n{self.text()}"
        self.child.close()
        code = self.child.exitstatus
        assert code is not None, f"killed by signal {self.child.signalstatus}"
        return code
