"""What `localr1 list` says, and what `localr1 show` says of a known model that is not here.

Facts first, then text or JSON. Reads models.toml and manifests, and opens no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localr1 import registry, store
from localr1.errors import LocalR1Error
from localr1.registry import ModelEntry
from localr1.store import Stored

_MIB, _GIB = 1 << 20, 1 << 30


def size(nbytes: int) -> str:
    """`15.99 MiB`, `376.65 GiB`."""
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB else f"{nbytes / _MIB:.2f} MiB"


def listing() -> list[dict[str, Any]]:
    """The known models, then the others that were pulled, one record each.

    `path` and `bytes` are what the name alone would open, null while that is not here; `quants` is
    all that is here, downloads that were cut off included.
    """
    pulled: dict[str, list[Stored]] = {}
    for stored in store.all_stored():
        pulled.setdefault(stored.manifest.model, []).append(stored)
    known = registry.entries()
    rows = [_listed(entry, pulled.get(entry.name, [])) for entry in known.values()]
    return rows + [_pulled(name, found) for name, found in pulled.items() if name not in known]


def _listed(entry: ModelEntry, found: list[Stored]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "title": entry.title,
        "licence": entry.licence,
        **_opened(entry.name),
        "quants": [_quant(stored) for stored in found],
    }


def _pulled(name: str, found: list[Stored]) -> dict[str, Any]:
    manifest = found[0].manifest
    return {
        "name": name,
        "aliases": [],
        "title": f"from {manifest.repo} on the hub",
        "licence": manifest.licence,
        **_opened(name),
        "quants": [_quant(stored) for stored in found],
    }


def _opened(name: str) -> dict[str, Any]:
    try:
        found = registry.resolve(name)
    except LocalR1Error:
        return {"path": None, "bytes": None}
    if found.stored is not None:
        return {"path": str(found.path), "bytes": found.stored.nbytes}
    files = found.entry.files if found.entry else ()
    nbytes = sum(found.path.with_name(file).stat().st_size for file in files)
    return {"path": str(found.path), "bytes": nbytes}


def _quant(stored: Stored) -> dict[str, Any]:
    return {
        "quant": stored.manifest.quant,
        "complete": stored.manifest.complete and not stored.missing,
        "bytes": stored.nbytes,
        "bytes_here": stored.nbytes_here,
        "path": str(stored.path),
    }


def text(models: list[dict[str, Any]]) -> str:
    """The records of `listing` as a table: a line for each quant that is here."""
    rows = [("NAME", "HERE", "LICENCE", "WHAT IT IS")]
    for model in models:
        whole = size(model["bytes"]) if model["bytes"] is not None else "-"
        here = [_here(quant) for quant in model["quants"]] or [whole]
        rows.append((model["name"], here[0], model["licence"], model["title"]))
        rows += [("", more, "", "") for more in here[1:]]
    return table(rows)


def _here(quant: dict[str, Any]) -> str:
    if quant["complete"]:
        return f"{quant['quant']}  {size(quant['bytes'])}"
    return f"{quant['quant']}  {size(quant['bytes_here'])} of {size(quant['bytes'])}"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells in columns; the last column is left as it is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def known(entry: ModelEntry, why: LocalR1Error) -> dict[str, Any]:
    """What models.toml says of a model that cannot be opened; `why` says why it cannot."""
    quants = [
        {
            "quant": name,
            "repository": quant.repo,
            "files": quant.pattern,
            "bytes": quant.nbytes,
            "verified": quant.verified,
            "default": name == entry.default_quant,
        }
        for name, quant in entry.quants.items()
    ]
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "title": entry.title,
        "path": None,
        "why": str(why),
        "hint": why.hint,
        "licence": entry.licence,
        "context": entry.context,
        "sampling": dict(entry.sampling),
        "source": entry.source,
        "config": dict(entry.config),
        "quants": quants,
    }


def known_text(model: dict[str, Any]) -> str:
    """The facts of `known` for a person."""
    rows = {
        "not here": f"{model['why']}; {model['hint']}",
        "also called": ", ".join(model["aliases"]),
        "made by": model["source"].removeprefix("hf:"),
        "licence": model["licence"],
        "context": f"{model['context']:,} tokens",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in model["sampling"].items()),
    }
    quants = [("QUANT", "SIZE", "REPOSITORY", "")]
    for row in model["quants"]:
        nbytes = size(row["bytes"]) if row["bytes"] is not None else "not known"
        notes = ["the usual one"] if row["default"] else []
        notes += [] if row["verified"] else ["not verified: the hub has the last word"]
        quants.append((row["quant"], nbytes, row["repository"], "; ".join(notes)))
    head = f"{model['name']}   {model['title']}"
    body = [f"{key:<14}{value}" for key, value in rows.items() if value]
    return "\n".join([head, *body, "", table(quants)])
