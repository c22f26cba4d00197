"""Where a value comes from: flag > LOCALR1_* variable > config.toml > models.toml > default.

One table of settings, one look-up that also tells the source, and our XDG folders. Not here: what a
setting does.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localr1.errors import USAGE, LocalR1Error
from localr1.sizes import Size, Tokens


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that a user can set: its type, what holds when nobody sets it, and its limits."""

    kind: type[str] | type[int] | type[float]
    default: str | int | float | Callable[[], str] | None = None
    low: float | None = None
    high: float | None = None

    def parse(self, raw: Any) -> str | int | float:
        """`raw` (text, or a TOML value) as this type. Raises ValueError or TypeError."""
        value = self.kind(raw)
        exact = self.kind is Size or not isinstance(raw, float) or value == raw
        if isinstance(raw, bool) or not exact:
            raise ValueError(raw)
        if self.low is not None and not float(value) >= self.low:
            raise ValueError(raw)
        if self.high is not None and not float(value) <= self.high:
            raise ValueError(raw)
        return value

    def unset(self) -> str | int | float | None:
        """What holds when nobody sets it; folders depend on the environment."""
        return self.default() if callable(self.default) else self.default

    def __str__(self) -> str:
        if self.kind is Size:
            return "a size such as 24GiB, 24GB or 24, which means GiB"
        if self.kind is Tokens:
            return "a number of tokens such as 16384 or 16k"
        noun = {str: "a text", int: "a whole number", float: "a number"}[self.kind]
        if self.high is not None:
            return f"{noun} from {self.low:g} to {self.high:g}"
        return noun if self.low is None else f"{noun} of {self.low:g} or more"


def config_file() -> Path:
    """The user's own settings; it need not exist."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "config.toml"


def state_folder() -> Path:
    """Where localr1 notes what it has seen, such as sums of files; it need not exist."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path:
    """Where localr1 keeps what it can make again, such as measurements; it need not exist."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def models_folder() -> Path:
    """Where models are kept: the setting `models`; it need not exist."""
    return Path(Settings({})["models"]).expanduser()


def _default_models() -> str:
    return str(_xdg("XDG_DATA_HOME", ".local/share") / "models")


def _xdg(variable: str, default: str) -> Path:
    # The specification says that a relative path in the variable counts as unset.
    home = os.environ.get(variable, "")
    return (Path(home) if os.path.isabs(home) else Path.home() / default) / "localr1"


SETTINGS: Mapping[str, Setting] = {
    "model": Setting(str, "tiny-r1"),
    "temperature": Setting(float, 0.6, low=0),
    "top_p": Setting(float, 0.95, low=0, high=1),
    "top_k": Setting(int, 0, low=0),
    "min_p": Setting(float, 0.0, low=0, high=1),
    "repetition_penalty": Setting(float, 1.0, low=0),
    "max_tokens": Setting(int, low=1),
    "seed": Setting(int, low=0),
    "system": Setting(str),
    "think": Setting(str, "fold"),
    "think_budget": Setting(int, low=0),
    "think_more": Setting(int, 0, low=0),
    "context": Setting(Tokens, low=1),
    "engine": Setting(str, "auto"),
    "device": Setting(str, "auto"),
    "cache": Setting(str, "16bit"),
    "threads": Setting(int, low=1),
    "residency": Setting(str, "auto"),
    "models": Setting(str, _default_models),
    "vram": Setting(Size),
    "ram": Setting(Size),
}


class Settings:
    """Every setting, from five layers. In `flags` and `model` None means unset."""

    def __init__(
        self,
        flags: Mapping[str, Any],
        model: Mapping[str, Any] | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        path = config_file()
        config = _read_config(path)
        self._values: dict[str, tuple[Any, str]] = {}
        for name, setting in SETTINGS.items():
            variable = f"LOCALR1_{name.upper()}"
            layers = (
                (flags.get(name), f"--{name.replace('_', '-')}"),
                (env.get(variable) or None, variable),
                (config.get(name), str(path)),
                ((model or {}).get(name), "models.toml"),
            )
            found = next(((raw, source) for raw, source in layers if raw is not None), None)
            self._values[name] = _parsed(name, *found) if found else (setting.unset(), "default")

    def __getitem__(self, name: str) -> Any:
        """The value of a setting."""
        return self._values[name][0]

    def source(self, name: str) -> str:
        """Who set it: a flag, a variable, a file, or "default"."""
        return self._values[name][1]


def _parsed(name: str, raw: Any, source: str) -> tuple[str | int | float, str]:
    setting = SETTINGS[name]
    try:
        return setting.parse(raw), source
    except (TypeError, ValueError):
        problem = f"{name} is {raw} (from {source}), and it takes {setting}"
        raise LocalR1Error(problem, "", USAGE) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as problem:
        raise LocalR1Error(
            f"cannot read {path}: {problem}", "correct or remove it", USAGE
        ) from None
    unknown = [name for name in values if name not in SETTINGS]
    if unknown:
        known = "it may hold " + ", ".join(SETTINGS)
        raise LocalR1Error(f"{path} sets {unknown[0]!r}, which is no setting", known, USAGE)
    return values
