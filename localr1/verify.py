"""`localr1 verify`: are a model's files the ones they should be?

Sums are compared with models.toml for what the package holds, and with what the hub stated for what
was pulled. Any other file is compared with the sum noted at the first `verify` of that path, so
later damage and silent replacement are found; who made the file is not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from localr1.errors import FAILURE, BadFile, LocalR1Error
from localr1.events import Progress
from localr1.models.gguf import shard_paths
from localr1.progress import ProgressLine
from localr1.registry import Resolved
from localr1.settings import state_folder

_CHUNK = 8 << 20  # bytes read at a time


Origin: TypeAlias = Literal["models.toml", "the hub", "its first verify"]


@dataclass(frozen=True, slots=True)
class Check:
    """One file: its sum, what it was compared with, and how that went."""

    file: str
    sha256: str
    expected: str | None
    source: Origin
    result: Literal["ok", "differs", "noted"]


def verify(model: Resolved) -> list[Check]:
    """Sum every file of a model and compare. Sums of files seen for the first time are noted."""
    known, origin = _known(model)
    noted = _read_notes()
    paths = files_of(model)
    sums = _sums(paths)
    checks = []
    for path in paths:
        expected = known.get(path.name) or noted.get(str(path))
        result: Literal["ok", "differs", "noted"] = "noted"
        if expected:
            result = "ok" if expected == sums[path] else "differs"
        source: Origin = origin if known.get(path.name) else "its first verify"
        checks.append(Check(str(path), sums[path], expected, source, result))
    fresh = {check.file: check.sha256 for check in checks if check.result == "noted"}
    if fresh:
        _write_notes({**noted, **fresh})
    return checks


def _known(model: Resolved) -> tuple[Mapping[str, str], Origin]:
    """File name -> sha256, as far as others stated it, and who did."""
    if model.stored is None:
        return model.entry.files if model.entry else {}, "models.toml"
    return {file.name: file.sha256 for file in model.stored.manifest.files}, "the hub"


def files_of(model: Resolved) -> list[Path]:
    """All files of a model: those that were pulled, the shards of a GGUF, or a folder's."""
    path = model.path.resolve()
    if model.stored is not None and (path.is_dir() or path == model.stored.path.resolve()):
        return [model.stored.folder / file.name for file in model.stored.manifest.files]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise BadFile(f"the folder {model.path} holds no files", "give the folder of a model")
        return files
    return shard_paths(path)


def report(checks: list[Check], as_json: bool) -> int:
    """Print the checks; returns the exit code."""
    differing = [check for check in checks if check.result == "differs"]
    if as_json:
        print(json.dumps({"ok": not differing, "files": [asdict(check) for check in checks]}))
        return FAILURE if differing else 0
    for check in checks:
        print(f"{check.result:<8} {check.sha256}  {check.file}")
    if any(check.result == "noted" for check in checks):
        print("noted: no sum was known; the next verify compares with this one", file=sys.stderr)
    if differing:
        names = ", ".join(Path(check.file).name for check in differing)
        where = " or ".join(sorted({check.source for check in differing}))
        raise BadFile(f"{names} has another sum than {where} says", "download the model again")
    return 0


def _sums(paths: list[Path]) -> dict[Path, str]:
    """sha256 of each file, as hex, with progress over all of them."""
    total, done, sums = sum(path.stat().st_size for path in paths), 0, {}
    buffer = memoryview(bytearray(_CHUNK))
    with ProgressLine(sys.stderr) as progress:
        for path in paths:
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    while got := file.readinto(buffer):
                        digest.update(buffer[:got])
                        done += got
                        progress.show(Progress("Summing the files", done, total, "bytes"))
            except OSError as error:
                raise LocalR1Error(f"cannot read {path}: {error.strerror}") from error
            sums[path] = digest.hexdigest()
    return sums


def _notes_file() -> Path:
    return state_folder() / "sha256.json"


def _read_notes() -> dict[str, str]:
    try:
        notes = json.loads(_notes_file().read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LocalR1Error(
            f"cannot read {_notes_file()}: {error}", "remove it to start anew"
        ) from error
    return notes if isinstance(notes, dict) else {}


def _write_notes(notes: dict[str, str]) -> None:
    """Replace the file at once, so that an interrupt never leaves half of it."""
    file = _notes_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(notes, indent=1, sort_keys=True))
    fresh.replace(file)
