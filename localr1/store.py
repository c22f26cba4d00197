"""What is on disk: models that were fetched, each a plain folder with a manifest beside its files.

`MODELS/<name>/<quant>/` holds the files of one quant of one model, under the names their publisher
gave them, and a manifest: where they come from, sizes and sha256. A manifest that is not complete
is a download that was interrupted. Not here: fetching (localr1.download), and what names mean
(localr1.registry).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from localr1.errors import BadFile, LocalR1Error
from localr1.settings import models_folder

MANIFEST = ".localr1.json"  # hidden: files of repositories may have any other name
PART = ".part"  # a file that is still coming in is NAME.<start of its sum>.part
HF = "hf"  # MODELS/hf/OWNER/REPO/<quant>: models that are not known by name
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a model; `sha256` is hex, empty until the file has come in."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of the store holds, or will hold once it is complete."""

    model: str  # a name of models.toml, or "hf:OWNER/REPO"
    quant: str
    repo: str
    commit: str
    licence: str
    complete: bool
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A folder of the store with its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """What a user calls it: "deepseek-r1:Q4_K_M"."""
        return f"{self.manifest.model}:{self.manifest.quant}"

    @property
    def path(self) -> Path:
        """What to open: the first .gguf file, or the folder if it holds none."""
        shards = sorted(file.name for file in self.manifest.files if file.name.endswith(".gguf"))
        return self.folder / shards[0] if shards else self.folder

    @property
    def nbytes(self) -> int:
        """Bytes of all its files together, once they are here."""
        return sum(file.nbytes for file in self.manifest.files)

    @property
    def nbytes_here(self) -> int:
        """Bytes that lie on this disk, half files included."""
        return sum(self._size(file) for file in self.manifest.files)

    @property
    def missing(self) -> list[str]:
        """Names of files that are not here, or not in full."""
        files = self.manifest.files
        return [file.name for file in files if _size(self.folder / file.name) != file.nbytes]

    def _size(self, file: StoredFile) -> int:
        whole = _size(self.folder / file.name)
        if whole is not None:
            return whole
        return sum(_size(part) or 0 for part in parts_in(self.folder, f"{file.name}."))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def parts_in(folder: Path, start: str = "") -> list[Path]:
    """Files that are still coming in and whose names start so."""
    return [path for path in folder.glob(f"*{PART}") if path.name.startswith(start)]


def folder_of(model: str, quant: str) -> Path:
    """Where a quant of a model lies. Raises ValueError for names that could lead elsewhere."""
    hf, _, repo = model.partition(":")
    parts = (HF, *repo.split("/")) if repo and hf == HF else (model,)
    for part in (*parts, quant):
        if not is_safe(part):
            raise ValueError(f"{part!r} cannot be the name of a folder")
    return models_folder().joinpath(*parts, quant)


def is_safe(name: str) -> bool:
    """Whether a name from outside may become a file or folder of the store."""
    return _SAFE.fullmatch(name) is not None


def all_stored() -> list[Stored]:
    """Everything in the store, complete or not, in the order of names."""
    top = models_folder()
    manifests = [*top.glob(f"*/*/{MANIFEST}"), *top.glob(f"{HF}/*/*/*/{MANIFEST}")]
    return sorted(
        (stored for path in manifests if (stored := at(path.parent)) is not None),
        key=lambda stored: stored.name,
    )


def stored_as(model: str) -> list[Stored]:
    """The quants of a model that are in the store, complete or not."""
    return [stored for stored in all_stored() if stored.manifest.model == model]


def at(folder: Path) -> Stored | None:
    """The model in a folder, None where there is no manifest; BadFile if that is damaged."""
    path = folder / MANIFEST
    try:
        table = json.loads(path.read_bytes())
        return Stored(folder, _manifest(table))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LocalR1Error(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        hint = "remove it and pull the model again; files that are whole are not fetched twice"
        raise BadFile(f"{path} is damaged", hint) from error


def _manifest(table: dict[str, Any]) -> Manifest:
    files = tuple(StoredFile(**row) for row in table.pop("files"))
    if not all(_is_file_name(file.name) and file.nbytes >= 0 for file in files):
        raise ValueError("a name leads elsewhere")
    return Manifest(**table, files=files)


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".") and "\\" not in name


def write(stored: Stored) -> None:
    """Put the manifest into its folder, at once and for good, so that none is ever half there."""
    stored.folder.mkdir(parents=True, exist_ok=True)
    fresh = stored.folder / f"{MANIFEST}.new"
    fresh.write_text(json.dumps(asdict(stored.manifest), indent=1))
    fresh.replace(stored.folder / MANIFEST)


def complete(stored: Stored, files: tuple[StoredFile, ...]) -> Stored:
    """Say that all files are here, with their sums, and drop what is left of older downloads."""
    done = Stored(stored.folder, replace(stored.manifest, complete=True, files=files))
    for part in parts_in(stored.folder):
        part.unlink()
    write(done)
    return done


def remove(stored: Stored) -> None:
    """Delete the files that the manifest names, and the folders that are then empty.

    Files that somebody else put there stay. Raises `LocalR1Error` if the folder is a link: what it
    leads to is not ours.
    """
    top = models_folder()
    inside = [stored.folder, *stored.folder.parents][: len(stored.folder.relative_to(top).parts)]
    for folder in inside:
        if folder.is_symlink():
            hint = "remove the link yourself if you no longer want it"
            raise LocalR1Error(f"{folder} is a link, and what it leads to is left alone", hint)
    with locked(stored.manifest.model, stored.manifest.quant):
        # The manifest goes last: cut off in between, what is left is still known to be there.
        write(Stored(stored.folder, replace(stored.manifest, complete=False)))
        names = [file.name for file in stored.manifest.files]
        parts = [path.name for path in parts_in(stored.folder)]
        for name in (*names, *parts, MANIFEST):
            (stored.folder / name).unlink(missing_ok=True)
    for folder in inside:
        if any(folder.iterdir()):
            break
        folder.rmdir()


@contextmanager
def locked(model: str, quant: str) -> Iterator[None]:
    """Hold one quant of one model against other processes; the system frees it if we die."""
    import filelock

    folder = models_folder() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{model}:{quant}".replace("/", "--").replace(":", "--")
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        hint = "wait until it is done, or end it"
        raise LocalR1Error(f"another localr1 is at work on {model}:{quant}", hint) from None
    try:
        yield
    finally:
        lock.release()
