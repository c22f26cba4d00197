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

    def said(self) -> list[Message]:
        """The messages as a prompt holds them.

        Thoughts stay out: R1 was trained on histories that hold answers only.
        """
        system = [Message("system", self.system)] if self.system else []
        return system + [Message(message.role, message.content) for message in self.messages]

    def prompt(self, text: str, again: bool = False) -> list[Message]:
        """The messages to render for the question `text`: the next one, or the last one `again`."""
        said = self.said()
        return [*(said[:-2] if again else said), Message("user", text)]

    def add_turn(self, question: Message, answer: Message, again: bool = False) -> None:
        """Append one finished turn, or put it `again` in the place of the last one."""
        end = len(self.messages)
        self.messages[end - 2 * again : end] = (question, answer)

    def undo(self) -> Message | None:
        """Take the last turn back; returns its question, or None where there is no turn."""
        if not self.messages:
            return None
        question = self.messages[-2]
        del self.messages[-2:]
        return question

    def clear(self) -> None:
        """Forget the turns; the system text stays."""
        self.messages.clear()

    def markdown(self) -> str:
        """The conversation for reading; thoughts folded away as HTML's `<details>`."""
        parts = [f"*{self.system}*"] if self.system else []
        for message in self.messages:
            if message.role == "user":
                parts.append(f"## You\n\n{message.content}")
                continue
            thought = f"<details><summary>Thought</summary>\n\n{message.reasoning}\n</details>\n\n"
            cut = "\n\n*(stopped)*" if message.stopped else ""
            shown = thought if message.reasoning else ""
            parts.append(f"## Answer\n\n{shown}{message.content}{cut}")
        return "\n\n".join(parts) + "\n"
