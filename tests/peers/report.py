"""What compare.py found, as lines, as JSON, and as the table of docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.metadata import distributions as _distributions
from pathlib import Path
from typing import Any

from localr1.bench import machine
from tests.peers.ik_llama_experts import NATIVE
from tools.check_benchmarks import write_table

COLUMNS = ("llama.cpp", "llama.cpp plain", "ik_llama.cpp", "ik_llama.cpp plain", "kt-kernel")


def line(row: dict[str, Any]) -> str:
    """One row for a person."""
    low, ratio, high = row["ratio"]
    return (
        f"{row['format']:<8} {row['tokens']:>4}  {row['peer']:<18}"
        f"  ours {row['ours']:7.1f} {row['unit']} ({row['share'][1]:.2f} of {row['limit']:.0f})"
        f"  theirs {row['theirs']:7.1f} ({row['their_share'][1]:.2f})"
        f"  ratio {ratio:.2f} ({low:.2f} to {high:.2f}, {row['rounds']} pairs;"
        f" others used up to {row['foreign']:.1f} cores)"
    )


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    try:
        found["llama-cpp-python"] = version("llama-cpp-python")
    except PackageNotFoundError:
        pass
    folder = Path(sys.prefix) / "peers"
    for package in _distributions(path=[str(folder / name) for name in ("ik", "kt")]):
        found[package.metadata["Name"]] = package.version
    return found


def result(rows: list[dict[str, Any]], missing: list[dict[str, Any]]) -> dict[str, Any]:
    """What the line of JSON holds."""
    host = {**machine(), "peers": versions(), "ik_compiled_here": NATIVE.exists()}
    return {"machine": host, "rows": rows, "missing": missing}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    low, ratio, high = row["ratio"]
    return f"{ratio:.2f} ({low:.2f}–{high:.2f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Formats and phases down, peers across; a cell is our speed over theirs."""
    keys = list(dict.fromkeys((row["format"], row["tokens"]) for row in rows))
    heads = ["format", "tokens", "localr1", "of the limit", *COLUMNS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for kind, tokens in keys:
        here = [row for row in rows if (row["format"], row["tokens"]) == (kind, tokens)]
        by_peer = {row["peer"]: row for row in here}
        first = max(here, key=lambda row: row["rounds"])
        low, share, high = first["share"]
        cells = [
            kind,
            str(tokens),
            f"{first['ours']:,.1f} {first['unit']}",
            f"{share:.2f} ({low:.2f}–{high:.2f}) of {first['limit']:,.0f}",
            *(_cell(by_peer.get(name)) for name in COLUMNS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(
    rows: list[dict[str, Any]],
    missing: list[dict[str, Any]],
    options: argparse.Namespace,
    measured: str,
) -> None:
    """Put the table, with what it was measured on, into docs/benchmarks.md; `measured` is the hash
    of the kernels.
    """
    host = machine()
    peers = ", ".join(f"{name} {number}" for name, number in sorted(versions().items()))
    ik = "compiled on the machine" if NATIVE.exists() else "the wheel, which has no AVX-512"
    absent = dict.fromkeys(f"{row['peer']} ({row['format']}): {row['reason']}" for row in missing)
    loud = max((row["foreign"] for row in rows), default=0.0)
    note = (
        f"{datetime.date.today()}, {host['cpu']}, {host['cores']} cores,"
        f" {host['ram_bytes'] / 2**30:.0f} GiB, last cache {host['last_cache_bytes'] >> 20} MiB;"
        f" numba {host['numba']}; {peers}; ik_llama.cpp {ik}; {options.threads} threads,"
        f" {options.rounds} pairs, sets of about {options.gib:g} GiB;"
        f" other programs used up to {loud:.1f} cores."
    )
    gone = ("\n\nNo figure: " + "; ".join(absent) + ".") if absent else ""
    command = " ".join(["python -m tests.peers.compare", *sys.argv[1:]])
    write_table(f"{table(rows)}\n\n{note}\n\n`{command}`{gone}", measured)
