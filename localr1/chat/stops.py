"""Stop strings on streamed text, and the one question both stop strings and tags ask of a stream.

Not token ids: those end a generation inside the engine.
"""

from __future__ import annotations

from collections.abc import Sequence


def partial_suffix(text: str, patterns: Sequence[str]) -> int:
    """Length of the longest end of `text` that more text could turn into one of `patterns`."""
    longest = max((len(pattern) for pattern in patterns), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(pattern.startswith(text[-length:]) for pattern in patterns):
            return length
    return 0


class StopStrings:
    """Cuts a stream at the first stop string that is complete; the stop string is not shown.

    `push` and `flush` return the text that is safe to show. Where two stop strings end at the same
    character the longer one wins, so the result does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit = False
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that no stop string can reach any more."""
        if self.hit:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.hit, self._held = True, ""
            return text[: min(ends)[1]]
        keep = len(text) - partial_suffix(text, self._stops)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held
