"""Typed access to the keys of a model's description, whatever a file of strangers puts there.

A key that is missing or null takes the default; without a default, or with a value of the wrong
kind, it is a BadFile that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localr1.errors import BadFile

MOST_LAYERS = 4096  # each is looked at one by one
LARGEST = 1 << 31  # no size of a real model comes near; a damaged file easily passes it
_HINT = "the model's files may be damaged or incomplete: download them again"
_NO_DEFAULT: Any = object()


def require(condition: bool, why: str) -> None:
    """Refuse a model whose numbers contradict each other or cannot be."""
    if not condition:
        raise BadFile(f"the model's configuration makes no sense: {why}", _HINT)


class Fields:
    """The keys of `values` under `prefix`; `source` is their name in messages."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self._values = values
        self._source = source
        self._prefix = prefix

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is, `default` where it is missing or null."""
        value = self._values.get(self._prefix + key)
        return default if value is None else value

    def integer(self, key: str, default: int = _NO_DEFAULT) -> int:
        """A whole number."""
        value = self._checked(key, default, (int,), "a whole number")
        return int(value)

    def real(self, key: str, default: float = _NO_DEFAULT) -> float:
        """A finite number."""
        value = self._checked(key, default, (int, float), "a number")
        if not -1e300 < value < 1e300:  # NaN too; JSON also holds integers that overflow a float
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def boolean(self, key: str, default: bool = _NO_DEFAULT) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str = _NO_DEFAULT) -> str:
        """A string."""
        return str(self._checked(key, default, (str,), "a text"))

    def section(self, key: str) -> Fields | None:
        """The object under `key`; None where it is missing or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self._source} under {key}")

    def _checked(self, key: str, default: Any, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self._wrong(key, value, wanted)
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> BadFile:
        name = self._prefix + key
        if value is _NO_DEFAULT:
            return BadFile(f"{self._source} has no {name}", _HINT)
        return BadFile(f"{self._source}: {name} should be {wanted}, not {repr(value)[:60]}", _HINT)
