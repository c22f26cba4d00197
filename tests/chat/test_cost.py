"""What showing an answer costs, on a real terminal."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.chat.terminal import ChildTerminal

TOKENS, TOKENS_PER_SECOND, SHARE = 10_000, 30, 0.05


def test_a_long_answer_costs_little_of_a_core(tmp_path: Path) -> None:
    """CPU time of the whole program while 10,000 tokens of Markdown come, from a model that costs
    next to nothing; at 30 tokens/s a real one would take 333 s for them.
    """
    with ChildTerminal(tmp_path, "chat", "markdown") as terminal:
        terminal.wait_prompt()
        program = psutil.Process(terminal.child.pid)
        before = program.cpu_times()
        terminal.send("hi\r")
        terminal.wait(lambda t: "context " in t.raw, 200)
        terminal.wait_prompt()
        after = program.cpu_times()
        seconds = sum(after[:2]) - sum(before[:2])
    assert seconds < SHARE * TOKENS / TOKENS_PER_SECOND
    assert "bold text with x² and code." in terminal.scrolled()
