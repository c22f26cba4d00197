"""GGUF files (versions 2 and 3, little endian), one or split, opened without reading the weights.

What this is: a parser that trusts nothing. Every count, length, dimension and offset is compared
with the size of the file before it is used, so a damaged or hostile file ends in a sentence and
never in a crash or an endless loop. Weights stay in the memory-mapped file; `file[name]` is a view.

What it is not: a writer (tools/convert.py has one), or a judge of the model (models/config.py).

Layout of a file: magic, version, counts; metadata (key, value type, value); tensor table (name,
dimensions with the fastest first, type, offset); padding to the alignment; tensor data.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpu_experts import QuantTensor, UnsupportedFormat, format_of
from localr1.errors import BadFile, ModelNotFound, Unsupported
from localr1.models.cursor import DOWNLOAD_AGAIN, Cursor, map_file
from localr1.models.ggml_types import IK_TYPES, type_name

Buffer = mmap.mmap | memoryview
_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the tensor table. `shape` is in numpy's order, the row length last."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int  # bytes from the start of its file
    shard: int = 0

    @property
    def type_name(self) -> str:
        """The format's usual name; "type 1234" for a number nobody has named."""
        return type_name(self.ggml_type)


class GGUFFile:
    """An open GGUF model: `metadata`, `tensors` (rows of the table) and the weights by name.

    A split model is one `GGUFFile`: metadata is the first shard's, the tables are joined.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, Any],
        tensors: dict[str, TensorInfo],
        files: Mapping[Path, Buffer],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._files = dict(files)
        self._data = list(files.values())

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open the model at `path`: a whole file, or any shard of a split one.

        Raises ModelNotFound (file or shard missing), BadFile (not a GGUF, damaged) or Unsupported
        (version, byte order or value types we do not read).
        """
        paths = shard_paths(Path(path))
        shards = [_read_shard(p, i) for i, p in enumerate(paths)]
        tensors: dict[str, TensorInfo] = {}
        for i, shard in enumerate(shards):
            _check_split(shard, i, len(shards))
            for info in shard.tensors:
                if info.name in tensors:
                    raise BadFile(
                        f"{shard.path.name} holds the tensor {info.name} twice", DOWNLOAD_AGAIN
                    )
                tensors[info.name] = info
        metadata = shards[0].metadata
        expected = metadata.get("split.tensors.count", len(tensors))
        if len(shards) > 1 and expected != len(tensors):
            raise BadFile(
                f"the {len(shards)} parts hold {len(tensors)} tensors together, not {expected}",
                "the parts may belong to different models; download them again",
            )
        return cls(paths[0], metadata, tensors, {shard.path: shard.data for shard in shards})

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> QuantTensor:
        """The weight `name` as a read-only view of the file; a vector has the shape (1, cols)."""
        info = self.tensors.get(name)
        if info is None:
            raise BadFile(
                f"{self.path.name} has no tensor {name}",
                "the file may be incomplete, or made by a converter that leaves it out",
            )
        fmt = _format(info)
        shape = info.shape if len(info.shape) > 1 else (1, *info.shape)
        if len(shape) > 3:
            raise Unsupported(
                f"{name} has {len(shape)} dimensions; at most 3 are known",
                "the file may be of another kind of model",
            )
        view = np.frombuffer(self._data[info.shard], np.uint8, _nbytes(info, fmt), info.offset)
        return QuantTensor(fmt, shape, (view,))

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of all files of the model in bytes."""
        return sum(map(len, self._data))

    @property
    def files(self) -> Mapping[Path, Buffer]:
        """The bytes of every file of the model, as mapped or as `move_to` left them."""
        return self._files

    def spans(self, names: Iterable[str]) -> dict[Path, list[tuple[int, int]]]:
        """Where these tensors lie: (begin, end) in bytes, file by file."""
        paths = list(self._files)
        found: dict[Path, list[tuple[int, int]]] = {}
        for info in (self.tensors[name] for name in names):
            end = info.offset + _nbytes(info, _format(info))
            found.setdefault(paths[info.shard], []).append((info.offset, end))
        return found

    def move_to(self, files: Mapping[Path, Buffer]) -> None:
        """Take the same bytes from other memory from now on; the mappings end with their views."""
        self._files = {path: files[path] for path in self._files}
        self._data = list(self._files.values())


def shard_paths(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to, in order; a missing one raises by name."""
    match = _SHARD_NAME.match(path.name)
    if match is None or int(match["count"]) < 1:
        paths = [path]
    else:
        count = int(match["count"])
        name = "{}-{:05d}-of-{:05d}.gguf"
        paths = [path.with_name(name.format(match["stem"], i + 1, count)) for i in range(count)]
        if path not in paths:
            hint = "give the part's name as its publisher wrote it"
            raise BadFile(f"{path.name} says it is part {match['no']} of {count}", hint)
    for part in paths:
        if not part.is_file() and len(paths) == 1:
            raise ModelNotFound(f"no such file: {part}", "check the path, or see `localr1 list`")
        if not part.is_file():
            hint = "download it too, and put all parts into one folder"
            raise ModelNotFound(f"part {part.name} of the model is missing", hint)
    return paths


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    data: mmap.mmap
    metadata: dict[str, Any]
    tensors: list[TensorInfo]


def _read_shard(path: Path, index: int) -> _Shard:
    data = map_file(path)
    cursor = Cursor(data, path.name)
    _check_start(cursor)
    n_tensors, n_values = cursor.count(13, "tensors"), cursor.count(13, "metadata values")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.name_of("a metadata key")
        if key in metadata:
            raise cursor.damaged(f"the metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(key)
    rows = [cursor.tensor_row() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"its alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors = []
    for name, shape, kind, offset in rows:
        if offset % alignment:
            raise cursor.damaged(f"the tensor {name} does not start at a multiple of {alignment}")
        info = TensorInfo(name, shape, kind, start + offset, index)
        _check_extent(info, len(data), cursor)
        tensors.append(info)
    return _Shard(path, data, metadata, tensors)


def _check_start(cursor: Cursor) -> None:
    magic = cursor.data[:4]
    if magic != b"GGUF":
        hint = DOWNLOAD_AGAIN
        if cursor.data[:7] == b"version":
            hint = "it is a Git LFS pointer, not the model: fetch it with `git lfs pull`"
        elif magic.lstrip()[:1] == b"<":
            hint = "it is a web page: take the download link, not the address of the page"
        raise BadFile(f"{cursor.name} is not a GGUF file", hint)
    cursor.at = 4
    version = cursor.number("<I", "the version")
    if version and version & 0xFFFF == 0:
        raise Unsupported(
            f"{cursor.name} is a big-endian GGUF; only little-endian files are read",
            "get the little-endian file, which nearly every publisher offers",
        )
    if version not in (2, 3):
        raise Unsupported(
            f"{cursor.name} is GGUF version {version}; versions 2 and 3 are read",
            "get a file that a current converter made",
        )


def _check_extent(info: TensorInfo, size: int, cursor: Cursor) -> None:
    """Refuse rows that are no whole number of blocks and data that reaches past the file's end."""
    try:
        fmt = format_of(info.ggml_type)
    except UnsupportedFormat:
        nbytes = 0  # how long it is, is unknown; asking for the tensor refuses it by name
    else:
        if info.shape[-1] % fmt.block_values:
            raise cursor.damaged(
                f"a row of {info.name} has {info.shape[-1]} values, "
                f"no multiple of {fmt.name}'s {fmt.block_values}"
            )
        nbytes = _nbytes(info, fmt)
    if info.offset + nbytes > size:
        raise BadFile(
            f"{cursor.name} is cut short: {info.name} ends at byte {info.offset + nbytes:,} "
            f"of {size:,}",
            DOWNLOAD_AGAIN,
        )


def _check_split(shard: _Shard, index: int, count: int) -> None:
    """Compare what the file says of its place in a split model with what its name says."""
    said = shard.metadata.get("split.count", 0 if count == 1 else None)
    place = shard.metadata.get("split.no", 0)
    if said in (0, 1) and count == 1:
        return
    if said != count or place != index:
        hint = "a split model is opened by the names its parts were published under"
        if not isinstance(said, int) or not isinstance(place, int):
            raise BadFile(f"{shard.path.name} does not say which part of a model it is", hint)
        raise BadFile(f"{shard.path.name} says it is part {place + 1} of {said}", hint)


def _format(info: TensorInfo) -> Any:
    try:
        return format_of(info.ggml_type)
    except UnsupportedFormat as error:
        name = info.type_name
        if info.ggml_type in IK_TYPES:
            message = f"{info.name} is {name}, a type only ik_llama.cpp knows"
            hint = "get the model in a llama.cpp type, e.g. Q4_K_M"
        else:
            message = f"{info.name} is {name}, a tensor type that is not supported"
            hint = "get the model in another type, e.g. Q4_K_M or Q8_0"
        raise Unsupported(message, hint) from error


def _nbytes(info: TensorInfo, fmt: Any) -> int:
    nbytes = int(fmt.row_bytes(info.shape[-1]))
    for n in info.shape[:-1]:
        nbytes *= n
    return nbytes
