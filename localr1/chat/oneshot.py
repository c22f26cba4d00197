"""One question and its answer, or several samples of it: `localr1 run`.

stdout (or the file `output`) gets the answer or JSON lines, nothing else. The question comes as an
argument; reading stdin or files into it is the command line's business.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from localr1.chat.files import write_atomically
from localr1.chat.screen import RichView
from localr1.chat.session import Session
from localr1.chat.signals import handle_keys
from localr1.chat.terminal import clean
from localr1.chat.views import JsonView, PlainView, ThinkMode, View, play
from localr1.chat.vote import majority, result_of
from localr1.errors import CONTEXT_FULL, INTERRUPTED, USAGE, LocalR1Error

_BROKEN_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE ended
_CODES = {"stop": 0, "length": 0, "context": CONTEXT_FULL, "interrupted": INTERRUPTED}


def run(
    session: Session,
    prompt: str,
    *,
    json_lines: bool = False,
    think: ThinkMode = "fold",
    output: Path | None = None,
    samples: int = 1,
    vote: bool = False,
) -> int:
    """Answer `prompt` in `session`; several `samples` each in one of their own, alike but empty.

    Returns the exit code:

    0 the answer is there, also when `max_tokens` cut it; 6 the context filled up on the way; 130
    Ctrl-C, what was written by then stays (on stdout; `output` is not touched); 141 the reader of a
    pipe went away. With `vote` only the result of most samples is written.

    Raises:
        LocalR1Error: `prompt` is blank, or (ContextFull) it leaves no room for an answer; `vote`
            and no sample has a result.
    """
    if samples > 1 and session.params.temperature == 0:
        problem = "at temperature 0 all samples are the same"
        raise LocalR1Error(problem, "give a --temperature, or one sample", USAGE)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale may lack the answer's letters
    out: TextIO = sys.stdout if output is None else io.StringIO()
    job = _Job(out, json_lines, think, vote)
    try:
        code = job.run(session, prompt, samples)
        if output is not None and code != INTERRUPTED and isinstance(out, io.StringIO):
            write_atomically(output, out.getvalue())
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail again, aloud.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code


class _Job:
    """Where the answers go and in which form."""

    def __init__(self, out: TextIO, json_lines: bool, think: ThinkMode, vote: bool) -> None:
        self._out, self._json, self._think, self._vote = out, json_lines, think, vote

    def run(self, session: Session, prompt: str, samples: int) -> int:
        """All samples, one after the other; the engine's cache keeps the prompt."""
        results: list[str | None] = []
        worst = 0
        for n in range(samples):
            sample = session if samples == 1 else _sample(session, n)
            if n and not self._json and not self._vote:
                self._out.write("\n---\n\n")
            number = n + 1 if samples > 1 else None
            reply = sample.reply(prompt)  # first: `stop` means the newest reply
            with handle_keys(sample.stop, sample.answer_now):
                done = play(self._view(sample, number), reply)
            worst = max(worst, _CODES[done.finish_reason])
            if worst == INTERRUPTED:
                return INTERRUPTED
            answers = sample.transcript.messages[-1:]  # none if not even a token found room
            results.append(result_of(answers[0].content) if answers else None)
            if self._vote and sys.stderr.isatty():
                found = "no result" if results[-1] is None else clean(results[-1])
                print(f"{n + 1} of {samples}: {found}", file=sys.stderr)
        return self._count(results) if self._vote else worst

    def _view(self, session: Session, sample: int | None) -> View:
        if self._json:
            return JsonView(self._out, sample)
        if self._vote:
            return _Silent()
        if self._out is sys.stdout and sys.stdout.isatty() and sys.stderr.isatty():
            limit = session.llm.engine.max_context
            return RichView(sys.stdout, sys.stderr, lambda: session.stats, limit, self._think)
        return PlainView(self._out, sys.stderr, self._think)

    def _count(self, results: list[str | None]) -> int:
        won = majority(results)
        if won is None:
            raise LocalR1Error("no sample has a result", "ask for one, in \\boxed{}, say")
        answer, votes = won
        if self._json:
            fields = {"type": "vote", "answer": answer, "votes": votes, "answers": results}
            self._out.write(json.dumps(fields) + "\n")
        else:
            self._out.write(clean(answer) + "\n")
        self._out.flush()
        return 0


class _Silent:
    """Shows nothing: what counts is the vote."""

    def show(self, event: object) -> None:
        """Nothing."""


def _sample(session: Session, n: int) -> Session:
    """An empty conversation set up like `session`, with random numbers of its own."""
    params = session.params
    if params.seed is not None:
        params = replace(params, seed=params.seed + n)
    return Session(session.llm, session.transcript.system, params, session.thinking)
