"""The models known by name (models.toml), and what a MODEL argument means: a name or a path.

Not here: reading the files (localr1.models), what was fetched (localr1.store), fetching.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from localr1 import store
from localr1.errors import LocalR1Error, ModelNotFound
from localr1.store import Stored

PACKAGE = Path(__file__).parent
DEFAULT_MODEL = "tiny-r1"
_QUANT = re.compile(  # as files call themselves: Q4_K_M, UD-Q2_K_XL, IQ4_XS, BF16
    r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4\w*|BF16|F16|F32)(?![A-Za-z0-9])",
    re.IGNORECASE,
)


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
        """The file to open for a model that is part of this package, else None."""
        kind, _, where = self.source.partition(":")
        path = PACKAGE / where / next(iter(self.files), "")
        return path if kind == "package" and path.is_file() else None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a MODEL argument means: the file or folder to open, its entry if any, its name.

    `stored` is its place in the store of fetched models, None for a file that lies elsewhere.
    """

    path: Path
    entry: ModelEntry | None
    name: str
    stored: Stored | None = None


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
    """The model that `model` means, on this machine.

    `NAME[:QUANT]` with a name or alias of models.toml, `hf:OWNER/REPO[:QUANT]`, a .gguf file, or a
    folder. Raises `ModelNotFound` for an unknown name (with the nearest known one), for a path that
    holds nothing, and for a model that was not fetched, or not all of it.
    """
    text = str(model)
    named = _named(text)
    if named is not None:
        name, quant, entry = named
        if entry is not None and entry.files:
            return Resolved(_part_of_the_package(entry), entry, entry.name)
        return _fetched(name, quant, entry)
    path = Path(text).expanduser()
    if text and path.exists():
        whole = path.resolve()
        stored = store.at(whole.parent if whole.is_file() else whole)
        return Resolved(path, None, whole.stem if whole.is_file() else whole.name, stored)
    raise _unknown(text)


def name_of(text: str) -> tuple[str, str | None, ModelEntry | None]:
    """What is to be fetched or removed: name in the store, quant if one is named, entry if any.

    Raises `ModelNotFound` for what has no name, `LocalR1Error` for a path: it is the user's own.
    """
    named = _named(text)
    if named is not None:
        return named
    if text and Path(text).expanduser().exists():
        hint = "fetched and removed are only models with a name: `localr1 list`"
        raise LocalR1Error(f"{text} is a file of yours", hint)
    raise _unknown(text)


def here(name: str, quant: str | None) -> list[Stored]:
    """What the store holds of a model, complete or not; `quant` may be a .gguf file's name."""
    found = store.stored_as(name)
    return [stored for stored in found if not quant or _is_quant(stored, quant)]


def is_known(text: str) -> bool:
    """Whether models.toml has this name, or this NAME of NAME:QUANT."""
    return _entry_named(text) is not None or _entry_named(text.rpartition(":")[0]) is not None


def _named(text: str) -> tuple[str, str | None, ModelEntry | None] | None:
    if is_known(text):
        entry, quant = parse(text)
        return entry.name, quant, entry
    if text.startswith(f"{store.HF}:"):
        return *split_hf(text), None
    return None


def split_hf(text: str) -> tuple[str, str | None]:
    """`hf:OWNER/REPO[:QUANT or file]` as ("hf:OWNER/REPO", quant). Raises ModelNotFound."""
    kind, _, rest = text.partition(":")
    repo, _, quant = rest.partition(":")
    owner, _, name = repo.partition("/")
    if kind != store.HF or not (store.is_safe(owner) and store.is_safe(name)):
        hint = "write hf:OWNER/REPO, or hf:OWNER/REPO:QUANT"
        raise ModelNotFound(f"{text!r} does not name a repository of the hub", hint)
    return f"{store.HF}:{repo}", quant or None


def quant_of(file: str) -> str:
    """The quant that a .gguf file's path in its repository speaks of ("Q4_K_M"), else its name."""
    path = PurePosixPath(file)
    for text in (path.name, path.parent.name):
        if found := _QUANT.findall(text):
            return str(found[-1]).upper()
    return stem_of(file)


def stem_of(file: str) -> str:
    """The name of a .gguf file without its part's number."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", PurePosixPath(file).stem)


def _part_of_the_package(entry: ModelEntry) -> Path:
    if entry.path is None:
        hint = "they are part of localr1: install it again"
        raise ModelNotFound(f"the files of {entry.name} are not on this machine", hint)
    return entry.path


def _fetched(name: str, quant: str | None, entry: ModelEntry | None) -> Resolved:
    """The quant asked for, else the only one here, else the usual one, else the largest."""
    found = here(name, quant)
    whole = [stored for stored in found if stored.manifest.complete]
    wanted = f"{name}:{quant}" if quant else name
    if not whole:
        hint = f"`localr1 pull {wanted}` fetches it"
        if found:
            hint = f"`localr1 pull {found[0].name}` goes on with it"
            raise ModelNotFound(f"the download of {found[0].name} is not complete", hint)
        raise ModelNotFound(f"{wanted} is not on this machine", hint)
    usual = entry.default_quant if entry else ""
    best = max(whole, key=lambda stored: (stored.manifest.quant == usual, stored.nbytes))
    if best.missing:
        hint = f"`localr1 pull {best.name}` fetches it again"
        raise ModelNotFound(f"{best.missing[0]} of {best.name} is missing or cut short", hint)
    return Resolved(best.path, entry, best.name, best)


def _is_quant(stored: Stored, quant: str) -> bool:
    """Whether `quant`, a quant or a file's name, means this one."""
    ours = stored.manifest.quant
    return ours.lower() == quant.lower() or (
        quant.endswith(".gguf") and ours in (quant_of(quant), stem_of(quant))
    )


def _unknown(text: str) -> ModelNotFound:
    if _looks_like_path(text):
        hint = "check the path, or `localr1 list`"
        return ModelNotFound(f"there is no file or folder {text}", hint)
    return ModelNotFound(f"no model is called {text!r}", _suggestion(text))


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith(("~", ".")) or text.endswith(".gguf")


def _suggestion(text: str) -> str:
    names = [name for entry in entries().values() for name in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.5)
    known = "`localr1 list` shows the known names; a path to a .gguf file or a folder works too"
    return f"did you mean {near[0]}? {known}" if near else known
