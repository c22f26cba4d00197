"""The slash commands of the chat: a table of name, help and function.

A new command is a function and a row. Reading lines and showing answers is repl.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import cast

from localr1.chat.session import Session
from localr1.chat.terminal import clean, count, duration, short
from localr1.chat.views import ThinkMode


@dataclass(slots=True)
class Chat:
    """What commands act on: the session, how thoughts are shown, and a way to say something."""

    session: Session
    say: Callable[[str], None]
    think: ThinkMode = "fold"
    leaving: bool = False
    stopped_at: float = -inf  # when Ctrl-C last ended an answer, in seconds of time.monotonic


@dataclass(frozen=True, slots=True)
class Command:
    """One row. `run` takes the chat and the words after the name, stripped."""

    name: str
    help: str
    run: Callable[[Chat, str], None]
    arguments: str = ""
    aliases: tuple[str, ...] = ()


def _help(chat: Chat, words: str) -> None:
    rows = [(f"/{' '.join([c.name, c.arguments]).strip()}", c) for c in COMMANDS]
    width = max(len(left) for left, _ in rows)
    for left, command in rows:
        also = ", ".join(f"/{alias}" for alias in command.aliases)
        chat.say(f"  {left:{width}}   {command.help}{f' (also {also})' if also else ''}")
    chat.say("")
    for keys, effect in KEYS:
        chat.say(f"  {keys:{width}}   {effect}")


def _clear(chat: Chat, words: str) -> None:
    chat.session.transcript.clear()
    chat.say("a new conversation")


def _bye(chat: Chat, words: str) -> None:
    chat.leaving = True


def _think(chat: Chat, words: str) -> None:
    if words in _THINK_MODES:
        chat.think = cast(ThinkMode, words)
        chat.say(_THINK_MODES[words])
    elif words:
        chat.say(f"/think takes show, fold or hide, not {clean(words)}")
    else:
        messages = chat.session.transcript.messages
        thought = messages[-1].reasoning if messages else ""
        chat.say(clean(thought).rstrip("\n") or "there is no thought yet")


def _stats(chat: Chat, words: str) -> None:
    stats, engine = chat.session.stats, chat.session.llm.engine
    if not stats.prompt_tokens:
        chat.say("there is no answer to count yet")
        return
    read = stats.prompt_tokens - stats.cached_tokens
    used = stats.prompt_tokens + stats.completion_tokens
    rows = [
        (
            "prompt",
            f"{count(stats.prompt_tokens, 'token')}, {stats.cached_tokens:,} from the cache",
        ),
        ("reading", f"{count(read, 'token')}, {stats.prefill_tps:.1f} tok/s"),
        (
            "thinking",
            f"{count(stats.reasoning_tokens, 'token')}, {duration(stats.reasoning_seconds)}",
        ),
        ("writing", f"{count(stats.completion_tokens, 'token')}, {stats.decode_tps:.1f} tok/s"),
        ("context", f"{short(used)} of {short(engine.max_context)}"),
    ]
    for name, value in rows:
        chat.say(f"  {name:10}{value}")


_THINK_MODES: dict[str, str] = {
    "show": "thoughts are shown in full as they come",
    "fold": "thoughts are folded to one line; /think prints the last one",
    "hide": "thoughts are hidden; /think prints the last one",
}
COMMANDS = (
    Command("help", "list the commands and keys", _help),
    Command("clear", "start a new conversation", _clear),
    Command(
        "think", "print the last thought, or say how thoughts are shown", _think, "[show|fold|hide]"
    ),
    Command("stats", "figures of the last answer", _stats),
    Command("bye", "leave", _bye, aliases=("exit", "quit")),
)
KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'a new line (also Ctrl-J; or begin and end with """)'),
    ("Ctrl-C", "stop the answer and keep it; twice leaves"),
    ("Ctrl-D", "leave"),
    ("//", "begin a message with a slash"),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def dispatch(chat: Chat, line: str) -> str | None:
    """Run `line` if it is a command; otherwise return the text to send to the model."""
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, words = line[1:].partition(" ")
    command = _BY_NAME.get(name)
    if command is not None:
        command.run(chat, words.strip())
        return None
    near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
    chat.say(f"unknown command /{clean(name)}: {hint} (// sends a slash)")
    return None
