"""What slash commands act on: the state of a chat on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from localr1.chat.session import Session
from localr1.chat.views import ThinkMode

if TYPE_CHECKING:
    from localr1.chat.saving import Saver

OFF = ("off", "none", "-")  # words that take a setting back


@dataclass(slots=True)
class Chat:
    """`say` shows a line of ours; `load` makes an empty session with the model a user names."""

    session: Session
    saver: Saver
    say: Callable[[str], None]
    load: Callable[[str], Session]
    think: ThinkMode = "fold"
    attached: list[str] = field(default_factory=list)  # files for the next message
    draft: str = ""  # what the next prompt is filled with
    again: bool = False  # the next message takes the place of the last turn
    leaving: bool = False
    stopped_at: float = -inf  # when Ctrl-C last ended an answer, in seconds of time.monotonic

    def message(self, text: str) -> str:
        """`text` with the attached files in front; they are used up."""
        parts, self.attached = [*self.attached, text], []
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table. `run` takes the chat and the words after the name, stripped; what it
    returns is sent to the model.
    """

    name: str
    help: str
    run: Callable[[Chat, str], str | None]
    arguments: str = ""
    completes: str = ""  # what Tab offers: "files", "sessions", "models", or words
    aliases: tuple[str, ...] = ()
