"""Sizes as people write them: "24GiB", "404.4 GB", "16k" tokens, or a number of an agreed unit."""

from __future__ import annotations

import math

GIB = 1 << 30
_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": GIB, "tib": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


class Size(int):
    """Bytes. Made from text, or from a number; without a unit it counts GiB. Raises ValueError."""

    def __new__(cls, size: str | int | float) -> Size:
        """`Size("24GB")`, `Size("24")`, `Size(24)`; the last two are 24 GiB."""
        return super().__new__(cls, parse_size(str(size), bare=GIB))

    def __reduce__(self) -> tuple[type[Size], tuple[str]]:
        """How a copy is made: a bare number of bytes would be taken for GiB."""
        return Size, (f"{int(self)}b",)


class Tokens(int):
    """A number of tokens: `Tokens("16k")` is 16,384. Raises ValueError."""

    def __new__(cls, tokens: str | int) -> Tokens:
        """From text, or from a number."""
        words = str(tokens).strip().lower().replace(",", "")
        number = words.removesuffix("k")
        return super().__new__(cls, int(number) * (1 if number == words else 1024))


def parse_size(text: str, bare: int) -> int:
    """Bytes that `text` means; a number without a unit is multiplied by `bare`. ValueError."""
    words = text.strip().lower()
    digits = words.rstrip("bikmgt ")
    unit = words[len(digits) :].strip()
    factor = _UNITS.get(unit) if unit else bare
    number = float(digits)
    if factor is None or not (math.isfinite(number) and number >= 0):
        raise ValueError(text)
    return int(number * factor)
