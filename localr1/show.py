"""What `localr1 list` and `localr1 show` say about models: facts gathered once, then text or JSON.

Reads headers only, never the weights, so it answers at once for a model of any size.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localr1.errors import LocalR1Error
from localr1.models.ggml_types import type_name
from localr1.models.gguf import GGUFFile
from localr1.models.source import Source, open_source, read_config
from localr1.registry import ModelEntry, Resolved, entries

_MIB, _GIB = 1 << 20, 1 << 30


def size(nbytes: int) -> str:
    """`15.99 MiB`, `376.65 GiB`."""
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB else f"{nbytes / _MIB:.2f} MiB"


def count(number: int) -> str:
    """`671.0 B`, `15.7 M`, `9.4 K`: a number of parameters."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.1f} {letter}"
    return f"{number / 1e3:.1f} K"


def listing() -> list[dict[str, Any]]:
    """The known models, one record each; `path` and `bytes` are null while it is not here."""
    return [_listed(entry) for entry in entries().values()]


def _listed(entry: ModelEntry) -> dict[str, Any]:
    path = entry.path
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "title": entry.title,
        "licence": entry.licence,
        "path": str(path) if path else None,
        "bytes": sum(path.with_name(name).stat().st_size for name in entry.files) if path else None,
    }


def listing_text(models: list[dict[str, Any]]) -> str:
    """The records of `listing` as a table."""
    rows = [("NAME", "SIZE", "LICENCE", "WHAT IT IS")]
    for model in models:
        here = size(model["bytes"]) if model["bytes"] is not None else "not here"
        rows.append((model["name"], here, model["licence"], model["title"]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
    return "\n".join("  ".join([*cells, row[3]]) for cells, row in zip(padded, rows, strict=True))


def facts(model: Resolved) -> dict[str, Any]:
    """Everything `show` knows of a model, as JSON types. Raises what opening its files raises."""
    source = open_source(model.path)
    config = read_config(source)
    metadata = source.metadata if isinstance(source, GGUFFile) else {}
    entry, formats = model.entry, _formats(source)
    return {
        "name": model.name,
        "title": entry.title if entry else metadata.get("general.name", ""),
        "path": str(source.path),
        "bytes": source.nbytes,
        "parameters": sum(row["parameters"] for row in formats),
        "licence": entry.licence if entry else metadata.get("general.license", ""),
        "sampling": dict(entry.sampling) if entry else {},
        "chat_template": _has_template(source),
        "formats": formats,
        "config": asdict(config),
        "card": _card(source.path),
    }


def _formats(source: Source) -> list[dict[str, Any]]:
    """Tensors, parameters and bytes by format, the largest first. Bytes are null where unknown."""
    tensors: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
    for name in source.names():
        try:
            weight = source[name]
            tensors[weight.format.name].append((math.prod(weight.shape), weight.nbytes))
        except LocalR1Error:
            if not isinstance(source, GGUFFile):
                raise
            info = source.tensors[name]  # a format that only others read still has a name
            tensors[type_name(info.ggml_type)].append((math.prod(info.shape), None))
    rows = [
        {
            "format": name,
            "tensors": len(pairs),
            "parameters": sum(parameters for parameters, _ in pairs),
            "bytes": None if None in [n for _, n in pairs] else sum(n or 0 for _, n in pairs),
        }
        for name, pairs in tensors.items()
    ]
    return sorted(rows, key=lambda row: -int(row["parameters"] or 0))


def _has_template(source: Source) -> bool:
    if isinstance(source, GGUFFile):
        return bool(source.metadata.get("tokenizer.chat_template"))
    if source.path.joinpath("chat_template.jinja").is_file():
        return True
    config = source.path / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_bytes()).get("chat_template"))


def _card(path: Path) -> str:
    """What the makers say the model can and cannot do: CARD.md beside its files, or nothing."""
    card = (path if path.is_dir() else path.parent) / "CARD.md"
    return card.read_text("utf-8").strip() if card.is_file() else ""


def facts_text(model: dict[str, Any]) -> str:
    """The facts for a person."""
    config, rope = model["config"], model["config"]["rope"]
    stretched = f" (YaRN, {rope['factor']:g} times {rope['original_context']:,})"
    rows = {
        "file": model["path"],
        "size": f"{size(model['bytes'])}, {count(model['parameters'])} parameters",
        "licence": model["licence"] or "not stated",
        "architecture": f"{config['architecture']}, {config['n_layers']} layers"
        + (f" and {config['n_mtp_layers']} MTP" if config["n_mtp_layers"] else "")
        + f", hidden size {config['hidden_size']:,}, {config['n_heads']} heads",
        "experts": f"{config['n_routed_experts']} routed, {config['n_experts_per_tok']} a token,"
        f" {config['n_shared_experts']} shared; first {config['n_dense_layers']} layers dense",
        "context": f"{config['max_context']:,} tokens" + (stretched if rope["factor"] > 1 else ""),
        "vocabulary": f"{config['vocab_size']:,} tokens",
        "template": "its own" if model["chat_template"] else "none in the file",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in model["sampling"].items()),
        "formats": "\n".join(_format_line(row) for row in model["formats"]),
    }
    head = f"{model['name']}   {model['title']}".rstrip()
    body = [
        f"{key:<14}" + textwrap.indent(text, " " * 14).lstrip()
        for key, text in rows.items()
        if text
    ]
    return "\n".join([head, *body, *(["", model["card"]] if model["card"] else [])])


def _format_line(row: dict[str, Any]) -> str:
    nbytes = "unknown format" if row["bytes"] is None else size(row["bytes"])
    return f"{row['format']:<8} {row['tensors']:>5} tensors {count(row['parameters']):>9}  {nbytes}"
