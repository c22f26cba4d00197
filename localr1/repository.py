"""What a repository of the hub holds, and which of its files a quant means. No network here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from localr1.errors import USAGE, BadFile, LocalR1Error, ModelNotFound
from localr1.registry import quant_of, stem_of

FOLDER = "folder"  # the quant of a model that is a HF folder
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# What an HF folder needs to be opened; the rest of a repository is pictures, code and cards.
_FOLDER_FILES = re.compile(r".*\.(safetensors|json|jinja)|tokenizer\.model|merges\.txt|LICENSE.*")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. Large ones have a `sha256`, small ones only git's `blob_id`."""

    path: str
    nbytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def name(self) -> str:
        """The last part of its path: the name it gets here."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit."""

    repo: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


def matching(found: Listing, pattern: str) -> tuple[RemoteFile, ...]:
    """The files that a quant of models.toml names. Raises `ModelNotFound` if there are none."""
    if pattern == "*":
        return _folder(found)
    depth = len(PurePosixPath(pattern).parts)
    paths = [(PurePosixPath(file.path), file) for file in found.files]
    files = tuple(f for path, f in paths if len(path.parts) == depth and path.match(pattern))
    return _whole(found, files, pattern)


def chosen(found: Listing, wanted: str | None) -> tuple[str, tuple[RemoteFile, ...]]:
    """The quant that `wanted` (a quant, a .gguf file, None) means in any repository: its files.

    None means Q4_K_M, or the only one there is, or the HF folder where there is no .gguf file.
    A quant that several files share is called by the file's name.
    """
    quants: dict[str, list[RemoteFile]] = {}
    for file in found.files:
        if file.path.endswith(".gguf") and "mmproj" not in file.name:
            quants.setdefault(quant_of(file.path), []).append(file)
    if wanted == FOLDER or (wanted is None and not quants):
        return FOLDER, _folder(found)
    for label, files in quants.items():
        named = {f.path for f in files if wanted in (f.path, f.name, stem_of(f.name))}
        if named:
            stems = {_SHARD.sub("", path) for path in named}
            kin = [file for file in files if _SHARD.sub("", file.path) in stems]
            alone = len(kin) == len(files)
            return label if alone else stem_of(kin[0].name), _whole(found, tuple(kin), str(wanted))
    by_name = {quant.upper(): quant for quant in quants}
    label = by_name.get((wanted or "Q4_K_M").upper(), "")
    if not label and wanted is None and len(quants) == 1:
        label = next(iter(quants))
    if not label:
        known = f"it holds {', '.join(sorted(quants)) or 'no .gguf file'}"
        if wanted is None:
            raise LocalR1Error(f"{found.repo} holds several models: name one", known, USAGE)
        raise ModelNotFound(f"{found.repo} holds nothing called {wanted!r}", known)
    return label, _whole(found, tuple(quants[label]), label)


def _folder(found: Listing) -> tuple[RemoteFile, ...]:
    files = tuple(f for f in found.files if "/" not in f.path and _FOLDER_FILES.fullmatch(f.path))
    if not {"config.json"} <= {file.path for file in files} or not any(
        file.path.endswith(".safetensors") for file in files
    ):
        hint = "it needs .gguf files, or config.json and .safetensors files"
        raise ModelNotFound(f"{found.repo} holds no model that can be read", hint)
    return files


def _whole(found: Listing, files: tuple[RemoteFile, ...], what: str) -> tuple[RemoteFile, ...]:
    """`files` in order, if they are one model with all its parts."""
    if not files:
        hint = f"its publisher may have moved it: name it as hf:{found.repo}:FILE.gguf"
        raise ModelNotFound(f"{found.repo} holds no file {what}", hint)
    counts = {int(match[1]) if (match := _SHARD.search(f.path)) else 1 for f in files}
    stems = {_SHARD.sub("", file.path) for file in files}
    if len(stems) > 1:
        hint = "name one of its files: " + ", ".join(sorted(file.path for file in files)[:4])
        raise LocalR1Error(f"{found.repo} holds several models called {what}", hint, USAGE)
    if counts != {len(files)}:
        hint = "the publisher may still be uploading; try again later, or another quant"
        raise BadFile(f"{found.repo} holds {len(files)} of {max(counts)} parts of {what}", hint)
    return tuple(sorted(files, key=lambda file: file.path))
