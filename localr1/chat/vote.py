r"""What an answer comes to, and which result most of several have: the cons@N of R1's tables.

The result of an answer is what its last `\boxed{}` holds; without one its last **bold** text;
without that its last number. Results are compared without dollars, blanks, `\text{}`, thousands
separators and trailing zeros.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_BOXED = re.compile(r"\\boxed\s*\{")
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_WRAPPER = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def result_of(answer: str) -> str | None:
    """The result that an answer states, as it is written there; None if there is none."""
    for match in reversed(list(_BOXED.finditer(answer))):
        inside = _balanced(answer[match.end() :])
        if inside is not None and inside.strip():
            return inside.strip()
    bold = [(a or b).strip(" :\n") for a, b in _BOLD.findall(answer)]
    if bold and bold[-1]:
        return str(bold[-1])
    numbers = _NUMBER.findall(answer)
    return str(numbers[-1]).rstrip(",") if numbers else None


def majority(results: Sequence[str | None]) -> tuple[str, int] | None:
    """The result most have and how many; the first to come where several do; None: nobody has one.

    It is given as the first of its voters wrote it.
    """
    given = [result for result in results if result is not None]
    if not given:
        return None
    votes = Counter(map(normal, given))
    winner, count = votes.most_common(1)[0]  # of equals the one that came first
    return next(result for result in given if normal(result) == winner), count


def normal(result: str) -> str:
    """The form in which results are compared."""
    text = _WRAPPER.sub(r"\1", result).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\[,;:! ]|\\left|\\right|[$\s*]", "", text).rstrip(".,;").casefold()
    text = _THOUSANDS.sub("", text)
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return f"{number.normalize():f}" if number.is_finite() else text


def _balanced(text: str) -> str | None:
    """`text` up to the brace that closes it; None if that does not come."""
    depth = 1
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:at]
    return None
