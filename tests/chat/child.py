"""Runs the chat or a one-shot on a fake model in a process of its own, for a real terminal.

    python -m tests.chat.child chat|resume|run|json SCRIPT [DELAY] [REPORT]

SCRIPT names one of `SCRIPTS`; after a chat its transcript is written to the file REPORT as JSON.
`resume` goes on with the conversation that was kept last.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from localr1.chat import archive, oneshot, repl
from localr1.chat.commands import Chat
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from localr1.errors import ContextFull
from localr1.events import Progress
from tests.chat.fake import SUM, FakeLLM, Finish

LONG = [*(f"step {i}. " for i in range(400)), "</think>", *(f"word {i} " for i in range(400))]
HOSTILE = "[/foo] list[int]\x1b[2J\x1b]52;c;aGk=\x07"
MARKDOWN = ["Some **bold** ", "text with $x^2$ ", "and `code`.\n", "- item ", "思考 ", "word "]
READING = [Progress("Reading the prompt", done, 1200, "tokens") for done in range(0, 1201, 100)]
SCRIPTS = {
    "sum": [SUM],
    "chinese": [["</think>", "思考"]],
    "long": [LONG],
    "loop": [["so ", "what? "] * 5000, ["It is ", "**933**", "."]],
    "slow": [["step 0. ", 0.2, "step 1. ", 8.0, *LONG]],
    "reading": [[*READING, *SUM]],
    "full": [[ContextFull("the context is full", "/clear starts anew")], SUM],
    "cut": [[*SUM[:9], Finish("context")]],
    "hostile": [
        [
            "\x1b]0;title\x07 ",
            0.3,
            "so ",
            0.3,
            "</think>",
            "[/foo] list[int]",
            "\x1b[2J\x1b]52;c;aGk=\x07",
        ]
    ],
    "markdown": [["Hm. ", "</think>", *(MARKDOWN[i % len(MARKDOWN)] for i in range(10_000))]],
    "flood": [["</think>", *["word " * 200] * 2000]],
}


def main(mode: str, script: str, delay: str = "0", report: str = "") -> int:
    session = Session(FakeLLM(SCRIPTS[script], delay=float(delay)))
    if mode not in ("chat", "resume"):
        return oneshot.run(session, "sum", json_lines=mode == "json")
    saved = archive.load(archive.latest()) if mode == "resume" else None
    if saved is not None:
        session.transcript = saved.transcript
    chat = Chat(session, Saver(session, "fake-r1", saved), say=print, load=lambda name: session)
    try:
        return repl.converse(chat)
    finally:
        if report:
            messages = [asdict(message) for message in session.transcript.messages]
            with open(report, "w", encoding="utf-8") as file:
                json.dump(messages, file)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
