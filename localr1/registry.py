"""The models known by name (models.toml), and what a MODEL argument means: a name or a path.

Not here: reading the files (localr1.models) and fetching them.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localr1.errors import ModelNotFound

PACKAGE = Path(__file__).parent
DEFAULT_MODEL = "tiny-r1"


@dataclass(frozen=True, slots=True)
class Quant:
    """One form of a model that can be fetched: `pattern` names its files in `repo`.

    `nbytes` is all files together, None where unknown. `verified` says whether repository, pattern
    and size were seen on a page of the hub; the hub's own answer at pull time is what counts.
    """

    repo: str
    pattern: str
    nbytes: int | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One table of models.toml; its head says what each field means."""

    name: str
    title: str
    licence: str
    context: int
    source: str
    aliases: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256
    config: Mapping[str, Any] = field(default_factory=dict)  # keys of HF's config.json
    quants: Mapping[str, Quant] = field(default_factory=dict)
    default_quant: str = ""

    @property
    def path(self) -> Path | None:
        """The file to open, or None while it is not on this machine."""
        kind, _, where = self.source.partition(":")
        path = PACKAGE / where / next(iter(self.files), "")
        return path if kind == "package" and path.is_file() else None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a MODEL argument means: the file or folder to open, its entry if any, its name."""

    path: Path
    entry: ModelEntry | None
    name: str


@functools.cache
def entries() -> Mapping[str, ModelEntry]:
    """Every known model by its name, in the order of models.toml."""
    beside = PACKAGE / "models.toml"  # in a wheel; in a checkout it is at the top of the repository
    text = (beside if beside.is_file() else PACKAGE.parent / "models.toml").read_text("utf-8")
    return {name: _entry(name, table) for name, table in tomllib.loads(text).items()}


def _entry(name: str, table: Mapping[str, Any]) -> ModelEntry:
    quants = {quant: Quant(**row) for quant, row in table.get("quants", {}).items()}
    aliases = tuple(table.get("aliases", ()))
    return ModelEntry(**{**table, "name": name, "aliases": aliases, "quants": quants})


def parse(text: str) -> tuple[ModelEntry, str | None]:
    """The known model that `NAME` or `NAME:QUANT` means, and the quant if one is named.

    An alias may hold a colon itself ("deepseek-r1:7b"), so the whole text is tried first. Case does
    not matter. Raises `ModelNotFound` for another name, or for a quant that the model has not.
    """
    entry = _entry_named(text)
    if entry is not None:
        return entry, None
    name, _, quant = text.rpartition(":")
    entry = _entry_named(name)
    if entry is None:
        raise ModelNotFound(f"no model is called {text!r}", _suggestion(text))
    for known in entry.quants:
        if known.lower() == quant.lower():
            return entry, known
    hint = f"known are {', '.join(entry.quants)}" if entry.quants else f"ask for {entry.name}"
    raise ModelNotFound(f"{entry.name} is not known as {quant!r}", hint)


def _entry_named(text: str) -> ModelEntry | None:
    lowered = text.lower()
    known = entries().values()
    return next((entry for entry in known if lowered in (entry.name, *entry.aliases)), None)


def resolve(model: str | Path) -> Resolved:
    """The model that `model` names: a name or alias of models.toml, a .gguf file, or a folder.

    Raises `ModelNotFound` for an unknown name (with the nearest known one), for a path that holds
    nothing, and for a known model whose files are not on this machine.
    """
    text = str(model)
    for entry in entries().values():
        if text.lower() in (entry.name, *entry.aliases):
            return Resolved(_file_of(entry), entry, entry.name)
    path = Path(text).expanduser()
    if text and path.exists():
        return Resolved(path, None, path.resolve().stem if path.is_file() else path.resolve().name)
    if _looks_like_path(text):
        raise ModelNotFound(
            f"there is no file or folder {text}", "check the path, or `localr1 list`"
        )
    raise ModelNotFound(f"no model is called {text!r}", _suggestion(text))


def _file_of(entry: ModelEntry) -> Path:
    if entry.path is None:
        raise ModelNotFound(
            f"the files of {entry.name} are not on this machine",
            "give the path of its first .gguf file instead of its name",
        )
    return entry.path


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith(("~", ".")) or text.endswith(".gguf")


def _suggestion(text: str) -> str:
    names = [name for entry in entries().values() for name in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.5)
    known = "`localr1 list` shows the known names; a path to a .gguf file or a folder works too"
    return f"did you mean {near[0]}? {known}" if near else known
