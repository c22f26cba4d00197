"""Reads one message from the keyboard: editing keys, history on disk, completion.

prompt_toolkit does the work; it is imported when a chat starts, so that nothing else waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from localr1.chat import archive
from localr1.chat.commands import BY_NAME, COMMANDS
from localr1.chat.signals import pending_keys
from localr1.interrupts import HeldInterrupts
from localr1.settings import state_folder

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_BLOCK = '"""'


class Keyboard:
    """`read` gives the next message, its block quotes taken off.

    Raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C in an empty line.
    """

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.shortcuts import CompleteStyle

        class Words(Completer):
            def get_completions(self, document: Document, _: object) -> Iterable[Completion]:
                before = document.text_before_cursor
                word = completed_word(before)
                for choice in completions(before):
                    yield Completion(choice, -len(word))

        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            key_bindings=_keys(),
            history=_history(),
            completer=Words(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            prompt_continuation="  ",
            enable_history_search=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            reserve_space_for_menu=0,
        )

    def read(self, draft: str, held: HeldInterrupts) -> str:
        """The next message; the line begins as `draft`.

        prompt_toolkit's own handler would lose a SIGINT that comes while it is leaving, so `held`
        gets them all; one that comes while the prompt is open ends it.
        """
        app = self._session.app

        def leave() -> None:
            if held.pending and app.future is not None and not app.is_done:
                held.pending = False
                app.exit(exception=KeyboardInterrupt())

        def begin() -> None:
            leave()
            loop = asyncio.get_running_loop()
            held.react = lambda: loop.call_soon_threadsafe(leave) if loop.is_running() else None

        try:
            line = self._session.prompt(default=draft, pre_run=begin, handle_sigint=False)
        finally:
            held.react = None
        line = line.rstrip().lstrip("\n")
        if _is_block(line):
            line = line.removeprefix(_BLOCK).removesuffix(_BLOCK).strip("\n")
        return line

    def lost_interrupt(self) -> bool:
        """Whether Ctrl-C came right after Enter: before the terminal was back in its normal mode
        it raised no signal.
        """
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
        from prompt_toolkit.input.vt100_parser import Vt100Parser
        from prompt_toolkit.keys import Keys

        app = self._session.app
        typed = [*get_typeahead(app.input), *app.key_processor.empty_queue()]
        Vt100Parser(typed.append).feed(pending_keys())
        store_typeahead(app.input, [k for k in typed if k.key != Keys.ControlC])
        return any(press.key == Keys.ControlC for press in typed)


def completed_word(before: str) -> str:
    """The part of a line that a completion replaces."""
    if not before.startswith("/") or "\n" in before:
        return ""
    command, space, words = before.partition(" ")
    if not space:
        return command
    known = BY_NAME.get(command[1:])
    return words if known and known.completes == "sessions" else words.rpartition(" ")[2]


def completions(before: str) -> list[str]:
    """What Tab offers behind the text `before` the cursor: only in lines that are commands."""
    word = completed_word(before)
    command, space, _ = before.partition(" ")
    if not before.startswith("/") or "\n" in before:
        return []
    if not space:
        return [f"/{c.name} " for c in COMMANDS if f"/{c.name}".startswith(word)]
    known = BY_NAME.get(command[1:])
    if known is None:
        return []
    if known.completes == "files":
        return _paths(word)
    choices = {"sessions": archive.names, "models": _models}.get(known.completes)
    offered = choices() if choices else known.completes.split()
    return [choice for choice in offered if choice.startswith(word)]


def _models() -> list[str]:
    from localr1.registry import entries

    return list(entries())


def _paths(word: str) -> list[str]:
    """Paths that begin with `word`; names with blanks or controls in them are left out."""
    folder, _, start = word.rpartition("/")
    folder += "/" if "/" in word else ""
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            found = [(e.name, e.is_dir()) for e in entries if e.name.startswith(start)]
    except OSError:
        return []
    shown = [(name, is_dir) for name, is_dir in found if start or not name.startswith(".")]
    plain = [(name, is_dir) for name, is_dir in shown if name.isprintable() and " " not in name]
    return [f"{folder}{name}{'/' if is_dir else ''}" for name, is_dir in sorted(plain)]


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
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
