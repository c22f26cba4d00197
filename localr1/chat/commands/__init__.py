"""The slash commands of the chat: a table of name, help and function.

A new command is a function and a row. Reading lines and showing answers is repl.py.
"""

from __future__ import annotations

import difflib

from localr1.chat.commands import keeping, looking, talking
from localr1.chat.commands.chat import Chat, Command
from localr1.chat.terminal import clean

__all__ = ["BY_NAME", "COMMANDS", "Chat", "dispatch"]


def _help(chat: Chat, words: str) -> None:
    rows = [(f"/{' '.join([c.name, c.arguments]).strip()}", c) for c in COMMANDS]
    width = max(len(left) for left, _ in rows)
    for left, command in rows:
        also = ", ".join(f"/{alias}" for alias in command.aliases)
        chat.say(f"  {left:{width}}   {command.help}{f' (also {also})' if also else ''}")
    chat.say("")
    for keys, effect in KEYS:
        chat.say(f"  {keys:{width}}   {effect}")


_SHOWN = "print the last thought, or say how to show them"
_SYSTEM = "show, set or remove (off) the system prompt"
COMMANDS = (
    Command("help", "list the commands and keys", _help),
    Command("clear", "begin a new conversation", keeping.clear),
    Command("retry", "ask the last question again", talking.retry),
    Command("undo", "take the last turn back", talking.undo),
    Command("edit", "change the last question", talking.edit),
    Command("file", "add text files to the next message", talking.file, "PATH…", "files"),
    Command("think", _SHOWN, looking.think, "[show|fold|hide]", "show fold hide"),
    Command("budget", "tokens a thought may have; 0: no thought", talking.budget, "[N|off]"),
    Command("set", "how tokens are chosen", talking.set_value, "[name value]", talking.NAMES),
    Command("system", _SYSTEM, talking.system, "[text|off]"),
    Command("stats", "figures of the last answer", looking.stats),
    Command("context", "what fills the context", looking.context),
    Command("plan", "where the model's weights lie", looking.plan),
    Command("save", "keep the conversation under a name", keeping.save, "[name]"),
    Command("load", "go on with a kept conversation", keeping.load, "[name]", "sessions"),
    Command("export", "write the conversation as Markdown", keeping.export, "[file]", "files"),
    Command("copy", "put the last answer on the clipboard", keeping.copy),
    Command("model", "go on with another model", keeping.model, "[name]", "models"),
    Command("bye", "leave", keeping.leave, aliases=("exit", "quit")),
)
KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'a new line (also Ctrl-J; or begin and end with """)'),
    ("Tab", "complete a command, a path or a name"),
    ("Up, Ctrl-R", "earlier messages"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Ctrl-C", "stop the answer and keep it; twice leaves"),
    ("Ctrl-\\", "answer now: end the thought"),
    ("Ctrl-D", "leave"),
    ("//", "begin a message with a slash"),
)
BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def dispatch(chat: Chat, line: str) -> str | None:
    """Run `line` if it is a command; returns the text to send to the model, if any.

    Raises LocalR1Error: from the command.
    """
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, words = line[1:].partition(" ")
    command = BY_NAME.get(name)
    if command is not None:
        return command.run(chat, words.strip())
    near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
    chat.say(f"unknown command /{clean(name)}: {hint} (// sends a slash)")
    return None
