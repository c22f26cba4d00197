"""Splits the model's text into its thinking and its answer, piece by piece as it streams.

R1 writes `<think>`, a newline, the thought, `</think>`, two newlines, the answer. The first tag is
often not in the output at all, because the prompt ended with it. The result does not depend on
where the stream was cut, and only what could still become a tag is held back.
"""

from __future__ import annotations

from typing import Literal

from localr1.chat.stops import partial_suffix
from localr1.events import Content, Reasoning

OPEN, CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """`push` text, get `Reasoning` and `Content`; `flush` at the end.

    A thought can only open the text, and it closes once: a tag that the answer mentions later is
    plain text, and so is a `<think>` inside the thought.
    """

    def __init__(self, in_reasoning: bool, thinks: bool = True) -> None:
        """`in_reasoning`: the prompt has already opened the thought. `thinks`: the model may open
        one; where it never does, all text is the answer, tags and newlines too.
        """
        self._phase: Literal["start", "thought", "answer"] = "start" if thinks else "answer"
        self._in_reasoning = in_reasoning
        self._held = ""
        self._trim = thinks  # newlines next to a tag belong to the format, not to the text

    @property
    def in_reasoning(self) -> bool:
        """Whether the text at this point belongs to the thought."""
        return self._in_reasoning

    def push(self, text: str) -> list[Reasoning | Content]:
        """The pieces that are certain now."""
        return self._split(self._held + text, last=False)

    def flush(self) -> list[Reasoning | Content]:
        """What was held back, now that no more text comes."""
        return self._split(self._held, last=True)

    def reopen(self) -> None:
        """Take the closing tag back: what comes next belongs to the thought again."""
        self._enter("thought")
        self._trim, self._held = False, ""

    def _split(self, text: str, last: bool) -> list[Reasoning | Content]:
        self._held = ""
        if self._phase == "start":
            first = text.lstrip()
            if not last and any(tag.startswith(first) and tag != first for tag in (OPEN, CLOSE)):
                self._held = text
                return []
            text = self._decide(text, first)
        if self._phase == "answer":
            return self._emit(text)
        before, tag, after = text.partition(CLOSE)
        if tag:
            pieces = self._emit(before)
            self._enter("answer")
            return pieces + self._emit(after)
        keep = len(text) if last else len(text) - partial_suffix(text, (CLOSE,))
        self._held = text[keep:]
        return self._emit(text[:keep])

    def _decide(self, text: str, first: str) -> str:
        """Settle what the text begins with; returns it without a leading tag."""
        if first.startswith(OPEN):
            self._enter("thought")
            return first[len(OPEN) :]
        if first.startswith(CLOSE):
            self._enter("answer")
            return first[len(CLOSE) :]
        self._enter("thought" if self._in_reasoning else "answer")
        return text

    def _enter(self, phase: Literal["thought", "answer"]) -> None:
        self._phase, self._in_reasoning, self._trim = phase, phase == "thought", True

    def _emit(self, text: str) -> list[Reasoning | Content]:
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        if not text:
            return []
        return [Reasoning(text) if self._in_reasoning else Content(text)]
