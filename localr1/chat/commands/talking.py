"""Commands that change what is said: turns taken back, files, the system prompt, thinking."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from localr1.chat.commands.chat import OFF, Chat
from localr1.chat.files import attachment
from localr1.chat.terminal import clean, count
from localr1.errors import USAGE, LocalR1Error
from localr1.settings import SETTINGS

NAMES = "temperature top_p top_k min_p repetition_penalty max_tokens seed"  # of /set


def retry(chat: Chat, words: str) -> str | None:
    """Ask the last question again; a fixed seed moves on, or the answer would be the same."""
    if not chat.session.transcript.messages:
        chat.say("there is no question to ask again")
        return None
    params = chat.session.params
    if params.seed is not None:
        chat.session.params = replace(params, seed=params.seed + 1)
    chat.again = True
    return chat.session.transcript.messages[-2].content


def undo(chat: Chat, words: str) -> None:
    """Take the last turn back."""
    question = chat.session.transcript.undo()
    if question is None:
        chat.say("there is nothing to take back")
        return
    chat.saver.save()
    first, *more = clean(question.content).split("\n")
    chat.say(f"taken back: {first[:60]}{'…' if more or len(first) > 60 else ''}")


def edit(chat: Chat, words: str) -> None:
    """Put the last question into the prompt; what is sent takes its place."""
    messages = chat.session.transcript.messages
    if not messages:
        chat.say("there is no question to edit")
        return
    chat.draft, chat.again = messages[-2].content, True


def system(chat: Chat, words: str) -> None:
    """Print, set or remove the system prompt."""
    transcript = chat.session.transcript
    if not words:
        chat.say(clean(transcript.system or "there is no system prompt"))
        return
    transcript.system = None if words in OFF else words
    chat.saver.save()
    chat.say("the system prompt is gone" if words in OFF else "the system prompt is set")


def file(chat: Chat, words: str) -> None:
    """Add text files to the next message."""
    if not words:
        chat.say("/file takes paths of text files")
        return
    try:
        paths = [Path(word).expanduser() for word in shlex.split(words)]
    except ValueError:
        raise LocalR1Error("a quotation mark is not closed", "", USAGE) from None
    for path in paths:
        text = attachment(path)
        tokens = len(chat.session.llm.tokenizer.encode(text))
        if tokens >= chat.session.llm.engine.max_context:
            problem = f"{path} has {tokens:,} tokens, more than the context holds"
            raise LocalR1Error(problem, "give a part of it, or a larger --context", USAGE)
        chat.attached.append(text)
        chat.say(f"{clean(str(path))}: {count(tokens, 'token')}, sent with the next message")


def budget(chat: Chat, words: str) -> None:
    """Print or set how many tokens a thought may have."""
    thinking = chat.session.thinking
    if words and words in OFF:
        chat.session.thinking = replace(thinking, budget=None)
    elif words:
        if not words.isdecimal():
            raise LocalR1Error("/budget takes a number of tokens, or off", "", USAGE)
        chat.session.thinking = replace(thinking, budget=int(words))
    limit = chat.session.thinking.budget
    if limit is None:
        chat.say("thoughts may be as long as they like")
    else:
        chat.say(f"thoughts end after {count(limit, 'token')}" if limit else "no thoughts")


def set_value(chat: Chat, words: str) -> None:
    """Print how tokens are chosen, or change one value."""
    name, _, value = words.partition(" ")
    if not name:
        for known in NAMES.split():
            chat.say(f"  {known:20}{_shown(chat, known)}")
        return
    if name not in NAMES.split():
        raise LocalR1Error(f"there is no {clean(name)} to set", NAMES, USAGE)
    if value:
        change: dict[str, Any] = {name: _parsed(name, value.strip())}
        chat.session.params = replace(chat.session.params, **change)
    chat.say(f"{name} is {_shown(chat, name)}")


def _parsed(name: str, value: str) -> Any:
    setting = SETTINGS[name]
    if value in OFF:
        return setting.default
    try:
        return setting.parse(value)
    except (TypeError, ValueError):
        raise LocalR1Error(f"{name} takes {setting}, not {clean(value)}", "", USAGE) from None


def _shown(chat: Chat, name: str) -> str:
    value = getattr(chat.session.params, name)
    return "off" if value is None else str(value)
