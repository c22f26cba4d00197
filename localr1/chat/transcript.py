"""What was said, as finished turns: user and assistant alternate, whatever happened in between.

A turn enters the transcript whole, question and answer together, so there is no moment at which a
signal or an error could leave half of one behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance. `stopped` marks an answer that was cut off before the model ended it."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str = ""
    stopped: bool = False


@dataclass(slots=True)
class Transcript:
    """The turns so far and the system text, if any."""

    messages: list[Message] = field(default_factory=list)
    system: str | None = None

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"user and assistant must alternate, got {roles}")

    def prompt(self, text: str) -> list[Message]:
        """The messages to render for the next question `text`.

        Thoughts stay out: R1 was trained on histories that hold answers only.
        """
        system = [Message("system", self.system)] if self.system else []
        said = [Message(message.role, message.content) for message in self.messages]
        return [*system, *said, Message("user", text)]

    def add_turn(self, question: Message, answer: Message) -> None:
        """Append one finished turn."""
        self.messages += (question, answer)

    def clear(self) -> None:
        """Forget the turns; the system text stays."""
        self.messages.clear()
