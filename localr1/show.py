"""What `localr1 show` says about a model that is here: facts gathered once, then text or JSON.

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

from localr1.errors import LocalR1Error, Unsupported
from localr1.listing import size
from localr1.models.ggml_types import type_name
from localr1.models.gguf import GGUFFile
from localr1.models.source import Source, open_source, read_config
from localr1.registry import Resolved


def count(number: int) -> str:
    """`671.0 B`, `15.7 M`, `9.4 K`: a number of parameters."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.1f} {letter}"
    return f"{number / 1e3:.1f} K"


def facts(model: Resolved) -> dict[str, Any]:
    """Everything `show` knows of a model, as JSON types. Raises what opening its files raises.

    `config` is null for an architecture that cannot be run; `unsupported` then says so.
    """
    source = open_source(model.path)
    config, unsupported = _config(source)
    metadata = source.metadata if isinstance(source, GGUFFile) else {}
    entry, formats = model.entry, _formats(source)
    stored = model.stored.manifest if model.stored else None
    licence = stored.licence if stored else metadata.get("general.license", "")
    return {
        "name": model.name,
        "title": entry.title if entry else metadata.get("general.name", ""),
        "path": str(source.path),
        "bytes": source.nbytes,
        "parameters": sum(row["parameters"] for row in formats),
        "licence": entry.licence if entry else licence,
        "repository": stored.repo if stored else None,
        "commit": stored.commit if stored else None,
        "sampling": dict(entry.sampling) if entry else {},
        "chat_template": _has_template(source),
        "formats": formats,
        "config": config,
        "unsupported": unsupported,
        "card": _card(source.path),
    }


def _config(source: Source) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return asdict(read_config(source)), None
    except Unsupported as error:
        return None, str(error)


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
    config = model["config"]
    rows = {
        "file": model["path"],
        "from": f"{model['repository']} at {model['commit'][:12]}" if model["repository"] else "",
        "size": f"{size(model['bytes'])}, {count(model['parameters'])} parameters",
        "licence": model["licence"] or "not stated",
        **(_shape(config) if config else {"not run": model["unsupported"]}),
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


def _shape(config: dict[str, Any]) -> dict[str, str]:
    """The lines about an architecture that can be run."""
    rope = config["rope"]
    stretched = f" (YaRN, {rope['factor']:g} times {rope['original_context']:,})"
    shared = config.get("n_kv_heads", config["n_heads"])
    mtp = config.get("n_mtp_layers", 0)
    return {
        "architecture": f"{config['architecture']}, {config['n_layers']} layers"
        + (f" and {mtp} MTP" if mtp else "")
        + f", hidden size {config['hidden_size']:,}, {config['n_heads']} heads"
        + (f" that share {shared} of keys and values" if shared < config["n_heads"] else ""),
        "experts": _experts(config),
        "context": f"{config['max_context']:,} tokens" + (stretched if rope["factor"] > 1 else ""),
        "vocabulary": f"{config['vocab_size']:,} tokens",
    }


def _experts(config: dict[str, Any]) -> str:
    if "n_routed_experts" not in config:
        return ""
    return (
        f"{config['n_routed_experts']} routed, {config['n_experts_per_tok']} a token,"
        f" {config['n_shared_experts']} shared; first {config['n_dense_layers']} layers dense"
    )


def _format_line(row: dict[str, Any]) -> str:
    nbytes = "unknown format" if row["bytes"] is None else size(row["bytes"])
    return f"{row['format']:<8} {row['tensors']:>5} tensors {count(row['parameters']):>9}  {nbytes}"
