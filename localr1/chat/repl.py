"""The chat on a terminal: read a line, run it as a command or send it, show the answer, keep it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from localr1.chat import oneshot
from localr1.chat.commands import Chat, dispatch
from localr1.chat.idle import Idle
from localr1.chat.keys import Keyboard
from localr1.chat.screen import RichView
from localr1.chat.signals import SecondInterrupt, handle_keys, no_echo, no_quit
from localr1.chat.terminal import clean
from localr1.chat.views import play
from localr1.errors import INTERRUPTED, USAGE, LocalR1Error
from localr1.interrupts import HeldInterrupts

_TWICE_SECONDS = 1.0


def converse(chat: Chat) -> int:
    """Talk until the user leaves; returns the exit code (130 after Ctrl-C twice).

    Without a terminal to read from, what stdin holds is one message and its answer goes to stdout.

    Raises:
        LocalR1Error: stdout is not a terminal, so there is nowhere to talk.
    """
    if not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
        code = oneshot.run(chat.session, text, think=chat.think)
        if chat.saver.kept:  # resumed in a pipe: the next one goes on from here
            chat.saver.save()
        return code
    if not sys.stdout.isatty():
        hint = 'localr1 run MODEL "a question" writes the answer to stdout'
        raise LocalR1Error("the chat needs a terminal to write to", hint, USAGE)
    chat.say(f"{clean(chat.session.llm.name)}   /help lists commands, Ctrl-D leaves")
    keyboard, idle = Keyboard(), Idle()
    try:
        with no_quit():
            return _rounds(chat, keyboard, idle)
    finally:
        with _told(chat):
            idle.stop()
            for _ in chat.saver.save_cache():
                pass


def _rounds(chat: Chat, keyboard: Keyboard, idle: Idle) -> int:
    while not chat.leaving:
        try:
            _round(chat, keyboard, idle)
        except SecondInterrupt:
            chat.say("")
            return INTERRUPTED
        except KeyboardInterrupt:  # at an empty prompt, or just after an answer ended
            if time.monotonic() - chat.stopped_at < _TWICE_SECONDS:
                return INTERRUPTED  # the model was fast and had stopped before the second press
            chat.say("Ctrl-D leaves")
    return 0


def _round(chat: Chat, keyboard: Keyboard, idle: Idle) -> None:
    """One message: a command, a question, or the wish to leave."""
    draft, chat.draft = chat.draft, ""
    if not draft:
        chat.again = False
    with HeldInterrupts() as held:
        try:
            idle.start(chat.saver.work())
            line = keyboard.read(draft, held)
            chat.stopped_at = -inf
            held.pending |= keyboard.lost_interrupt()
        except EOFError:
            chat.leaving = True
            return
        finally:
            with _told(chat):
                idle.stop()
    with _told(chat):
        text = dispatch(chat, line)
        if text and text.strip():
            _answer(chat, chat.message(text))


def _answer(chat: Chat, text: str) -> None:
    """One turn, kept as soon as it is there."""
    session = chat.session
    view = RichView(
        sys.stdout,
        sys.stdout,
        stats=lambda: session.stats,
        max_context=session.llm.engine.max_context,
        think=chat.think,
    )
    try:
        reply = session.reply(text, again=chat.again)  # first: `stop` means the newest reply
        with handle_keys(session.stop, session.answer_now), no_echo():
            done = play(view, reply)
            if done.finish_reason == "interrupted":
                chat.stopped_at = time.monotonic()
    finally:
        chat.again = False
        chat.saver.save()


@contextmanager
def _told(chat: Chat) -> Iterator[None]:
    """An error of the user's kind, or of the disk, is told, and the chat goes on."""
    try:
        yield
    except LocalR1Error as problem:
        chat.say(f"error: {clean(str(problem))}")
        if problem.hint:
            chat.say(f"hint:  {clean(problem.hint)}")
    except OSError as problem:
        where = f" ({clean(str(problem.filename))})" if problem.filename else ""
        chat.say(f"error: {clean(problem.strerror or str(problem)).lower()}{where}")
