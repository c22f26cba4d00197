"""The chat on a terminal: read a line, run it as a command or send it, show the answer.

Keys are prompt_toolkit's; it is imported when the chat starts, so that nothing else waits for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from localr1.chat import oneshot
from localr1.chat.commands import Chat, dispatch
from localr1.chat.screen import RichView
from localr1.chat.session import Session
from localr1.chat.signals import SecondInterrupt, handle_keys, no_echo
from localr1.chat.terminal import clean
from localr1.chat.views import ThinkMode, play
from localr1.errors import INTERRUPTED, USAGE, LocalR1Error
from localr1.settings import state_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_BLOCK = '"""'
_TWICE_SECONDS = 1.0


def chat(session: Session, *, think: ThinkMode = "fold") -> int:
    """Talk until the user leaves; returns the exit code (130 after Ctrl-C twice).

    Without a terminal to read from, what stdin holds is one message and its answer goes to stdout.

    Raises:
        LocalR1Error: stdout is not a terminal, so there is nowhere to talk.
    """
    if not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
        return oneshot.run(session, text)
    if not sys.stdout.isatty():
        hint = 'localr1 run MODEL "a question" writes the answer to stdout'
        raise LocalR1Error("the chat needs a terminal to write to", hint, USAGE)
    state = Chat(session, say=print, think=think)
    print(f"{clean(session.llm.name)}   /help lists commands, Ctrl-D leaves")
    read = _reader()
    while not state.leaving:
        try:
            _round(state, read)
        except SecondInterrupt:
            print()
            return INTERRUPTED
        except KeyboardInterrupt:  # at an empty prompt, or just after an answer ended
            if time.monotonic() - state.stopped_at < _TWICE_SECONDS:
                return INTERRUPTED  # the model was fast and had stopped before the second press
            print("Ctrl-D leaves")
    return 0


def _round(state: Chat, read: Callable[[], str]) -> None:
    """One message: a command, a question, or the wish to leave."""
    try:
        line = read().rstrip().lstrip("\n")
    except EOFError:
        state.leaving = True
        return
    state.stopped_at = -inf
    if _is_block(line):
        line = line.removeprefix(_BLOCK).removesuffix(_BLOCK).strip("\n")
    text = dispatch(state, line)
    if text and text.strip():
        _answer(state, text)


def _answer(state: Chat, text: str) -> None:
    """One turn. An error of the user's kind is told, and the chat goes on."""
    session = state.session
    view = RichView(
        sys.stdout,
        sys.stdout,
        stats=lambda: session.stats,
        max_context=session.llm.engine.max_context,
        think=state.think,
    )
    try:
        with handle_keys(session.stop, session.answer_now), no_echo():
            done = play(view, session.reply(text))
            if done.finish_reason == "interrupted":
                state.stopped_at = time.monotonic()
    except LocalR1Error as problem:
        print(f"error: {clean(str(problem))}")
        if problem.hint:
            print(f"hint:  {clean(problem.hint)}")


def _reader() -> Callable[[], str]:
    """A function that reads one message from the keyboard, with history and editing keys."""
    from prompt_toolkit import PromptSession

    prompt: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        key_bindings=_keys(),
        history=_history(),
        prompt_continuation="  ",
        enable_history_search=True,
        reserve_space_for_menu=0,
    )
    return prompt.prompt


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        text = event.current_buffer.text.strip()
        if text.startswith(_BLOCK) and not _is_block(text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=has_focus(DEFAULT_BUFFER))  # a search in the history has its own
    def drop_line(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def _is_block(text: str) -> bool:
    """Whether `text` is enclosed in triple quotes."""
    closed = text.startswith(_BLOCK) and text.endswith(_BLOCK)
    return closed and len(text) >= 2 * len(_BLOCK)


def _history() -> History:
    """Past messages on disk, readable by their owner only; in memory where that is not possible."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = state_folder() / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)  # also a file that was there before
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
