"""How long a model may think, how long it must, and when its thought goes round in circles.

Not here: where a thought ends in the text (think.py) and how words are put into the model's mouth
(turn.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from localr1.errors import USAGE, LocalR1Error

# Closes a thought as its writer might, so that the answer follows from what is there.
ENOUGH = "\n\nThat is enough thought. I will answer now.\n"
# Goes on with a thought: budget forcing (s1: Simple test-time scaling, arXiv 2501.19393).
WAIT = "Wait"

_GRAM = 16  # tokens that must come back before a passage counts as the same
_MIN_TIMES, _MIN_TOKENS = 3, 96  # a repetition is at least so many passages, and so long in all


@dataclass(frozen=True, slots=True)
class Thinking:
    """`budget`: tokens after which a thought is closed (0: no thought, None: no limit); `more`: how
    often the model goes on when it wants to close its thought. The budget wins.

    Raises LocalR1Error on a negative number.
    """

    budget: int | None = None
    more: int = 0

    def __post_init__(self) -> None:
        if (self.budget or 0) < 0 or self.more < 0:
            raise LocalR1Error("a thinking budget cannot be negative", "0 is no thought", USAGE)


class RepetitionDetector:
    """`push` tokens; it gives the length of a passage once that has come often enough in a row.

    A passage counts when it came three times without a difference, over 96 tokens at least; it is
    reported once, until something else is written. Constant time per token.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}  # 16 tokens: last place, distance
        self._period = 0  # of the repetition that is going on and has been reported

    def push(self, token: int) -> int | None:
        """The passage's length in tokens, at the token that makes it a repetition; else None."""
        tokens = self._tokens
        tokens.append(token)
        if self._period and token != tokens[-1 - self._period]:
            self._period = 0
        gram, here = tuple(tokens[-_GRAM:]), len(tokens)
        last, distance = self._seen.get(gram, (0, 0))
        self._seen[gram] = here, here - last
        if self._period or not last or here - last != distance or not self._repeated(distance):
            return None
        self._period = distance
        return distance

    def _repeated(self, period: int) -> bool:
        length = max(_MIN_TIMES * period, _MIN_TOKENS)
        passage = self._tokens[-length:]
        return len(passage) == length and passage[period:] == passage[:-period]
