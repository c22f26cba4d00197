"""Hugging Face folders: config.json and safetensors files, memory-mapped, under GGUF names.

The weights stay where they are: F32, F16, BF16 and DeepSeek's FP8 (e4m3 with a float32 scale per
128x128 block) are views of the files. The experts of a layer become one stack with a part each.

Layout of a safetensors file: u64 length of the header, the header (JSON: name -> dtype, shape and
begin and end behind the header), the data.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cpu_experts import FORMATS, QuantTensor
from localr1.errors import BadFile, LocalR1Error, ModelNotFound, Unsupported
from localr1.models.cursor import DOWNLOAD_AGAIN, map_file
from localr1.models.hf_names import gguf_name

Buffer = mmap.mmap | memoryview
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FP8_BLOCK = 128
_FORMATS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "FP8_E4M3"}
_SCALE = "_scale_inv"
_INCOMPLETE = "the folder may be incomplete or mixed: download the whole folder again"
_LONGEST_HEADER = 100 << 20  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a safetensors file: where it lies and what it is."""

    file: str
    data: Buffer
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    def view(self) -> np.ndarray:
        """The tensor's bytes, read-only, not copied."""
        return np.frombuffer(self.data, np.uint8, self.end - self.begin, self.begin)


class HFFolder:
    """An open model folder: `config` (the content of config.json) and the weights by GGUF name.

    `config["num_nextn_predict_layers"]` is corrected to the MTP layers that the weights hold, since
    transformers writes the number into configurations whose weights have none.
    """

    def __init__(self, path: Path, config: dict[str, Any], entries: dict[str, _Entry]) -> None:
        self.path = path
        self.config = config
        self._entries = entries
        self._parts: dict[str, dict[int | None, str]] = {}  # GGUF name -> expert -> HF name
        for name in entries:
            if name.endswith((_SCALE, "rotary_emb.inv_freq")):
                continue
            place = gguf_name(name)
            if place is None:
                raise Unsupported(
                    f"{path.name} holds the tensor {name}, which no supported model has",
                    "folders of DeepSeek-V2 and V3, Llama, Qwen2 and Qwen3 are read",
                )
            self._parts.setdefault(place[0], {})[place[1]] = name
        layers = config.get("num_hidden_layers")
        first = layers if isinstance(layers, int) else 0
        config["num_nextn_predict_layers"] = sum(
            f"blk.{first + i}.nextn.eh_proj.weight" in self._parts for i in range(64)
        )

    @classmethod
    def open(cls, path: str | Path) -> HFFolder:
        """Open the folder at `path`.

        Raises ModelNotFound (folder or a file missing), BadFile (damaged), Unsupported.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ModelNotFound(
                f"no config.json in {path}", "give a .gguf file or a folder with safetensors files"
            )
        config = _json_object(path / "config.json")
        _check_quantisation(config)
        entries: dict[str, _Entry] = {}
        for file in _files(path):
            for name, entry in _read_header(file).items():
                if name in entries:
                    raise BadFile(
                        f"{file.name} holds {name}, as does {entries[name].file}", _INCOMPLETE
                    )
                entries[name] = entry
        return cls(path, config, entries)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> QuantTensor:
        """The weight under its GGUF name; experts come as a stack, a vector as (1, cols)."""
        parts = self._parts.get(name)
        if parts is None:
            raise BadFile(f"{self.path.name} has no tensor {name}", _INCOMPLETE)
        if None in parts:
            entries = [self._entries[parts[None]]]
            return _tensor(parts, entries, entries[0].shape, self._scales([parts[None]], entries))
        for i in range(len(parts)):
            if i not in parts:
                raise BadFile(f"{self.path.name} lacks expert {i} of {name}", _INCOMPLETE)
        names = [parts[i] for i in range(len(parts))]
        entries = [self._entries[hf] for hf in names]
        shape = (len(entries), *entries[0].shape)
        return _tensor(parts, entries, shape, self._scales(names, entries))

    def _scales(self, names: list[str], entries: list[_Entry]) -> tuple[np.ndarray, ...]:
        """FP8's block scales, one float32 matrix a part; nothing for other dtypes."""
        if entries[0].dtype != "F8_E4M3":
            return ()
        scales = []
        for name, entry in zip(names, entries, strict=True):
            scale = self._entries.get(name + _SCALE)
            blocks = tuple(math.ceil(n / FP8_BLOCK) for n in entry.shape)
            if scale is None or scale.dtype != "F32" or scale.shape != blocks:
                raise BadFile(
                    f"{name} is FP8 but its {name.rpartition('.')[2]}{_SCALE} is missing or not "
                    f"float32 of the shape {blocks}",
                    _INCOMPLETE,
                )
            scales.append(scale.view().view(np.float32).reshape(blocks))
        return tuple(scales)

    def names(self) -> list[str]:
        """GGUF names of all tensors."""
        return list(self._parts)

    @property
    def nbytes(self) -> int:
        """Size of all weight files in bytes."""
        return sum(map(len, self.files.values()))

    @property
    def files(self) -> Mapping[Path, Buffer]:
        """The bytes of every file that holds weights, as mapped or as `move_to` left them."""
        return {self.path / entry.file: entry.data for entry in self._entries.values()}

    def spans(self, names: Iterable[str]) -> dict[Path, list[tuple[int, int]]]:
        """Where these tensors and their scales lie: (begin, end) in bytes, file by file."""
        found: dict[Path, list[tuple[int, int]]] = {}
        for part in (part for name in names for part in self._parts[name].values()):
            for entry in map(self._entries.get, (part, part + _SCALE)):
                if entry is not None:
                    found.setdefault(self.path / entry.file, []).append((entry.begin, entry.end))
        return found

    def move_to(self, files: Mapping[Path, Buffer]) -> None:
        """Take the same bytes from other memory from now on; the mappings end with their views."""
        self._entries = {
            name: replace(entry, data=files[self.path / entry.file])
            for name, entry in self._entries.items()
        }


def _tensor(
    parts: dict[int | None, str],
    entries: list[_Entry],
    shape: tuple[int, ...],
    scales: tuple[np.ndarray, ...],
) -> QuantTensor:
    first = entries[0]
    for entry, name in zip(entries, parts.values(), strict=True):
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            raise BadFile(
                f"{name} has another type or shape than its layer's other experts", _INCOMPLETE
            )
    if first.dtype not in _FORMATS:
        raise Unsupported(
            f"{next(iter(parts.values()))} is {first.dtype}, a weight type that is not supported",
            "supported are F32, F16, BF16 and DeepSeek's FP8 (F8_E4M3)",
        )
    shape = shape if len(shape) > 1 else (1, *shape)
    if not 2 <= len(shape) <= 3 or 0 in shape:
        raise BadFile(f"{next(iter(parts.values()))} has the shape {first.shape}", _INCOMPLETE)
    return QuantTensor(
        FORMATS[_FORMATS[first.dtype]], shape, tuple(e.view() for e in entries), scales
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise LocalR1Error(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path.name} is not valid JSON", DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise BadFile(f"{path.name} holds no JSON object", DOWNLOAD_AGAIN)
    return value


def _check_quantisation(config: dict[str, Any]) -> None:
    """Refuse quantised folders other than DeepSeek's own FP8."""
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return
    known = isinstance(quantisation, dict) and quantisation.get("quant_method") == "fp8"
    if not known or quantisation.get("weight_block_size") != [FP8_BLOCK, FP8_BLOCK]:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else "unknown"
        raise Unsupported(
            f"weights quantised by {repr(method)[:40]} are not supported here",
            "take the FP8 or bfloat16 folder, or a GGUF file of the model",
        )


def _files(path: Path) -> list[Path]:
    """The weight files of a folder; a missing one raises by name."""
    if (path / INDEX).is_file():
        names = _json_object(path / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise BadFile(f"{INDEX} has no weight_map", DOWNLOAD_AGAIN)
        files = {str(name) for name in names.values()}
        if any(Path(name).name != name for name in files):
            raise BadFile(f"{INDEX} names files outside of its folder", DOWNLOAD_AGAIN)
    else:
        files = {SINGLE}
    for name in sorted(files):
        if not (path / name).is_file():
            raise ModelNotFound(f"{name} is missing in {path}", "download the whole folder again")
    return [path / name for name in sorted(files)]


def _read_header(path: Path) -> dict[str, _Entry]:
    data = map_file(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LONGEST_HEADER):
        raise BadFile(f"{path.name} is no safetensors file, or cut short", DOWNLOAD_AGAIN)
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path.name} has a damaged header", DOWNLOAD_AGAIN) from error
    if not isinstance(header, dict):
        raise BadFile(f"{path.name} has a damaged header", DOWNLOAD_AGAIN)
    header.pop("__metadata__", None)
    if not all(name.isprintable() and len(name) <= 256 for name in header):
        raise BadFile(f"{path.name} has a damaged header", DOWNLOAD_AGAIN)
    return {name: _entry(path.name, data, 8 + length, name, row) for name, row in header.items()}


def _entry(file: str, data: mmap.mmap, start: int, name: str, row: Any) -> _Entry:
    try:
        dtype, shape = str(row["dtype"]), tuple(row["shape"])
        begin, end = row["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise BadFile(f"{file} describes {name} wrongly", DOWNLOAD_AGAIN) from error
    if not whole or begin > end:
        raise BadFile(f"{file} describes {name} wrongly", DOWNLOAD_AGAIN)
    if start + end > len(data):
        raise BadFile(
            f"{file} is cut short: {name} ends behind the end of the file", DOWNLOAD_AGAIN
        )
    if dtype in _FORMATS and end - begin != math.prod(shape) * FORMATS[_FORMATS[dtype]].block_bytes:
        raise BadFile(f"{file}: {name} has not as many bytes as its shape needs", DOWNLOAD_AGAIN)
    return _Entry(file, data, dtype, shape, start + begin, start + end)
