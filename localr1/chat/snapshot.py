"""The model's cache of a conversation in a file, so that resuming it re-reads nothing.

Pieces of tokens lie one after the other in one file, in the cache's own form; an index beside it
says which tokens, with each piece's checksum and end. The index is replaced as a whole and only
after the rows it speaks of are there, so a killed process leaves the last good state. A talk that
went on appends its new tokens. Plain bytes: zlib makes R1's rows a quarter smaller and reading them
ten times slower.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import localr1
from localr1.chat.archive import index_file
from localr1.chat.files import write_atomically

if TYPE_CHECKING:
    from localr1.engine.runner import Cache
    from localr1.models.template import ChatTemplate

_PIECE = 256  # tokens; what is lost at most when saving is interrupted
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")

_Piece = tuple[int, int, int]  # tokens, CRC-32, where the piece ends in the file


class CachingEngine(Protocol):
    """What a snapshot needs of an engine: its cache and the ids of the tokens in it."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def cache(self) -> Cache: ...
    @property
    def max_context(self) -> int: ...
    def known(self, ids: Sequence[int]) -> int: ...


class CachingModel(Protocol):
    """What a snapshot needs of a model; `localr1.llm.LLM` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def engine(self) -> CachingEngine: ...


def fingerprint(llm: CachingModel) -> dict[str, str]:
    """What must be equal for a saved cache to be of use: the weights, the template, the layout.

    Weights are told by the names, sizes and samples of their files: reading 400 GB to compare them
    would take longer than what the cache saves.
    """
    weights = hashlib.sha256()
    for path in _model_files(llm.path):
        size = path.stat().st_size
        weights.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for n in range(_SAMPLES):
                file.seek(n * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                weights.update(file.read(_SAMPLE_BYTES))
    return {
        "model": weights.hexdigest(),
        "template": hashlib.sha256(llm.template.source.encode()).hexdigest(),
        "layout": llm.engine.cache.layout,
        "version": localr1.__version__,
    }


def _model_files(model: Path) -> list[Path]:
    if model.is_dir():
        return sorted(path for path in model.iterdir() if path.is_file())
    match = _SHARD.search(model.name)
    if not match:
        return [model]
    shards = f"{model.name[: match.start()]}-?????-of-{match[1]}.gguf"
    return sorted(model.parent.glob(shards.replace("[", "[[]")))


def save(
    rows: Path, engine: CachingEngine, ids: Sequence[int], mark: dict[str, str]
) -> Iterator[None]:
    """Bring the file up to `ids`, the first tokens of the engine's cache; yields after each piece.

    An abandoned iterator leaves the state before it. Raises OSError.
    """
    pieces = _reusable(rows, ids, mark)
    begin = sum(piece[0] for piece in pieces)
    if begin == len(ids):
        return
    if rows.exists():  # from here on the index must not speak of rows that are written anew
        _write_index(rows, ids[:begin], pieces, mark)
    cache = engine.cache
    handle = os.open(rows, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as file:
        file.seek(pieces[-1][2] if pieces else 0)
        while begin < len(ids):
            end = min(begin + _PIECE, len(ids))
            crc = cache.save(file, begin, end)
            pieces.append((end - begin, crc, file.tell()))
            begin = end
            yield
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    _write_index(rows, ids, pieces, mark)


def restore(rows: Path, engine: CachingEngine, mark: dict[str, str]) -> str:
    """Fill the engine's cache from the file; returns a word on why that was not possible, or "".

    A cache of another model, quant or template is not used; of a damaged one only what is whole.
    """
    try:
        index = json.loads(index_file(rows).read_bytes())
        ids, pieces = list(index["ids"]), [(int(n), int(crc)) for n, crc, _ in index["pieces"]]
        if min((n for n, _ in pieces), default=0) < 1 or sum(n for n, _ in pieces) != len(ids):
            raise ValueError("pieces")
        differs = [name for name in mark if index["mark"].get(name) != mark[name]]
    except FileNotFoundError:
        return "there is no saved cache"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "the saved cache is damaged"
    if differs:
        return f"the saved cache is of another {differs[0]}"
    if len(ids) >= engine.max_context:
        return "the saved cache is longer than the context"
    engine.cache.truncate(0)
    engine.ids.clear()
    try:
        with rows.open("rb") as file:
            for length, crc in pieces:
                if engine.cache.load(file, length) != crc:
                    return f"the saved cache is damaged behind token {len(engine.ids):,}"
                engine.cache.commit(length)
                engine.ids.extend(ids[len(engine.ids) : len(engine.ids) + length])
    except (OSError, EOFError):
        return f"the saved cache ends at token {len(engine.ids):,}"
    return ""


def _reusable(rows: Path, ids: Sequence[int], mark: dict[str, str]) -> list[_Piece]:
    """The pieces in the file that are a beginning of `ids`."""
    try:
        index = json.loads(index_file(rows).read_bytes())
        if index["mark"] != mark:
            return []
        kept: list[_Piece] = []
        begin = 0
        for length, crc, place in index["pieces"]:
            end = begin + length
            if list(ids[begin:end]) != index["ids"][begin:end]:
                break
            kept.append((int(length), int(crc), int(place)))
            begin = end
        return kept
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _write_index(
    rows: Path, ids: Sequence[int], pieces: list[_Piece], mark: dict[str, str]
) -> None:
    index: dict[str, Any] = {"mark": mark, "ids": list(ids), "pieces": pieces}
    write_atomically(index_file(rows), json.dumps(index), 0o600)
