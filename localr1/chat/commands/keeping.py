"""Commands about the conversation as a whole: new, kept, fetched back, exported, another model."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from localr1.chat import archive
from localr1.chat.commands.chat import Chat
from localr1.chat.files import write_atomically
from localr1.chat.saving import Saver
from localr1.chat.terminal import can_move_cursor, clean, count
from localr1.chat.transcript import Transcript
from localr1.errors import USAGE, LocalR1Error
from localr1.registry import resolve

# Programs that set the clipboard, and the variable that says that their display is there.
_CLIPBOARDS = (("wl-copy", "WAYLAND_DISPLAY"), ("xclip -selection clipboard", "DISPLAY"))


def clear(chat: Chat, words: str) -> None:
    """Begin a new conversation; the system prompt stays, and so does the old one on disk."""
    session = chat.session
    kept = f"; the old one is kept as {chat.saver.name}" if chat.saver.kept else ""
    session.transcript = Transcript(system=session.transcript.system)
    chat.saver = Saver(session, chat.saver.model)
    chat.say(f"a new conversation{kept}")


def leave(chat: Chat, words: str) -> None:
    """End the chat."""
    chat.leaving = True


def save(chat: Chat, words: str) -> None:
    """Keep the conversation under a name; it is kept there from now on."""
    if not chat.session.transcript.messages:
        chat.say("there is nothing to save yet")
        return
    chat.saver.save()
    if words:
        chat.saver.rename(words)
    chat.say(f"saved; `localr1 chat --resume {chat.saver.name}` goes on with it")


def load(chat: Chat, words: str) -> None:
    """Go on with a saved conversation, or list them."""
    if not words:
        for name in archive.names():
            chat.say(f"  {name}")
        chat.say("/load NAME goes on with one")
        return
    saved = archive.load(words)
    chat.session.transcript = saved.transcript
    chat.saver = Saver(chat.session, chat.saver.model, saved)
    told = chat.saver.restore_cache()
    chat.say(resumed(saved, told))


def resumed(saved: archive.Saved, told: str) -> str:
    """What was fetched back, and why its cache was not, if so."""
    turns = count(len(saved.transcript.messages) // 2, "turn")
    return f"{saved.name}: {turns}" + (f"; {told}, so it is read again" if told else "")


def export(chat: Chat, words: str) -> None:
    """Write the conversation as Markdown."""
    if not chat.session.transcript.messages:
        chat.say("there is nothing to export yet")
        return
    path = Path(words or f"{chat.saver.name}.md").expanduser()
    if path.exists():
        raise LocalR1Error(f"{path} exists", "give another name", USAGE)
    try:
        write_atomically(path, chat.session.transcript.markdown())
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise LocalR1Error(f"cannot write {path}: {reason}", "give another name", USAGE) from None
    chat.say(f"written to {clean(str(path))}")


def copy(chat: Chat, words: str) -> None:
    """Put the last answer on the clipboard."""
    messages = chat.session.transcript.messages
    if not messages:
        chat.say("there is no answer to copy")
        return
    answer = messages[-1].content
    for program, display in _CLIPBOARDS:
        command = program.split()
        if os.environ.get(display) and shutil.which(command[0]):
            with contextlib.suppress(subprocess.SubprocessError, OSError):  # a display that is gone
                subprocess.run(command, input=answer.encode(), check=True, timeout=5)
                chat.say("copied")
                return
    if not can_move_cursor(sys.stdout):
        chat.say("there is no clipboard here")
        return
    # OSC 52 asks the terminal itself, which also works over ssh.
    sys.stdout.write(f"\x1b]52;c;{base64.b64encode(answer.encode()).decode()}\x07")
    sys.stdout.flush()
    chat.say("copied, if this terminal lets programs do that")


def model(chat: Chat, words: str) -> None:
    """Go on with another model; it reads the conversation anew."""
    session, before = chat.session, chat.saver.model
    if not words:
        chat.say(f"{clean(session.llm.name)} answers; /model NAME goes on with another")
        return
    resolve(words)  # what is not here is told before anything is given up
    try:
        session.use(lambda: chat.load(words))
    except (LocalR1Error, KeyboardInterrupt):
        chat.say(f"{clean(words)} could not be loaded, so {clean(before)} is loaded again")
        session.use(lambda: chat.load(before))
        raise
    chat.saver = chat.saver.with_model(words)
    chat.saver.save()
    chat.say(f"{clean(session.llm.name)} goes on")
