"""`localr1 config`: every setting, its value and where that came from; and the folders in use.

Not here: how a setting is found (localr1.settings).
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from localr1 import registry, settings
from localr1.errors import USAGE, LocalR1Error, ModelNotFound
from localr1.settings import SETTINGS, Settings
from localr1.sizes import GIB, Size


def main(name: str | None, as_json: bool) -> None:
    """Print everything, or the value of one setting. Raises LocalR1Error for an unknown name."""
    known = current()
    if name is None:
        print(json.dumps(to_json(known)) if as_json else text(known))
        return
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`localr1 config` lists them"
        raise LocalR1Error(f"no setting is called {name!r}", hint, USAGE)
    if as_json:
        print(json.dumps({"name": name, **to_json(known)["settings"][name]}))
    else:
        print(_shown(name, known[name], ""))


def current() -> Settings:
    """The settings that a command without flags would use, those of its model included."""
    try:
        entry = registry.resolve(Settings({})["model"]).entry
    except ModelNotFound:  # it says so where the model is used
        entry = None
    return Settings({}, model=entry.sampling if entry else None)


def folders() -> dict[str, Path]:
    """Where localr1 reads and writes; they need not exist."""
    return {
        "settings": settings.config_file(),
        "models": settings.models_folder(),
        "state": settings.state_folder(),
        "cache": settings.cache_folder(),
    }


def to_json(known: Settings) -> dict[str, Any]:
    """What `--json` prints; sizes in bytes."""
    values = {name: {"value": known[name], "source": known.source(name)} for name in SETTINGS}
    return {"settings": values, "folders": {name: str(path) for name, path in folders().items()}}


def text(known: Settings) -> str:
    """The settings and the folders for a person."""
    rows = [(name, _shown(name, known[name], "not set"), known.source(name)) for name in SETTINGS]
    width, names = max(len(value) for _, value, _ in rows), max(map(len, SETTINGS))
    lines = [f"{name:<{names}}  {value:<{width}}  {source}" for name, value, source in rows]
    places = [f"{name:<{names}}  {path}" for name, path in folders().items()]
    return "\n".join([*lines, "", "files and folders", *places])


def _shown(name: str, value: Any, unset: str) -> str:
    if value is None:
        return unset
    return f"{value / GIB:g} GiB" if SETTINGS[name].kind is Size else str(value)
