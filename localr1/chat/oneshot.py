"""One question, one answer: `localr1 run`. stdout gets the answer (or JSON lines), nothing else.

The question comes as an argument; reading stdin or files into it is the command line's business.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from localr1.chat.screen import RichView
from localr1.chat.session import Session
from localr1.chat.signals import handle_keys
from localr1.chat.views import JsonView, PlainView, View, play
from localr1.errors import CONTEXT_FULL, INTERRUPTED

_BROKEN_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE ended
_CODES = {"stop": 0, "length": 0, "context": CONTEXT_FULL, "interrupted": INTERRUPTED}


def run(session: Session, prompt: str, *, json_lines: bool = False) -> int:
    """Answer `prompt` on stdout; returns the exit code.

    0 the answer is there, also when `max_tokens` cut it; 6 the context filled up on the way; 130
    Ctrl-C, what was written by then stays; 141 the reader of a pipe went away.

    Raises:
        LocalR1Error: `prompt` is blank, or (ContextFull) it leaves no room for an answer.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale may lack the answer's letters
    try:
        with handle_keys(session.stop, session.answer_now):
            done = play(_view(session, json_lines), session.reply(prompt))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail again, aloud.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return _CODES[done.finish_reason]


def _view(session: Session, json_lines: bool) -> View:
    if json_lines:
        return JsonView(sys.stdout)
    if sys.stdout.isatty() and sys.stderr.isatty():
        limit = session.llm.engine.max_context
        return RichView(sys.stdout, sys.stderr, lambda: session.stats, limit)
    return PlainView(sys.stdout, sys.stderr)
