"""`localr1 bench --kernels`: each format's kernels beside the limits of this machine.

The measuring is cpu_experts.bench's: R1's shapes, each round beside a read of as many bytes
(decode), the VNNI peak (prefill) or both (8 tokens). Here: the card, and the refusal of a share
that cannot be.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from statistics import median
from typing import Any

import cpu_experts
from cpu_experts.bench import CACHES, MOST, bench_rows, working_set
from cpu_experts.cpu import last_cache_bytes
from localr1.bench import machine
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Progress
from localr1.progress import ProgressLine

DEFAULT_FORMATS = ("Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS")
DEFAULT_SECONDS = 5.0


def main(formats: str | None, seconds: float | None, threads: int | None, as_json: bool) -> None:
    """Measure and print: the card, then one line of JSON. A share above 1.02 is an error."""
    result = run(_names(formats), DEFAULT_SECONDS if seconds is None else seconds, threads)
    if not as_json:
        print(card(result))
    print(json.dumps(result))
    refuse_impossible(result["rows"])


def _names(text: str | None) -> tuple[str, ...]:
    """The formats of a comma-separated list, in any case; LocalR1Error for an unknown one."""
    if text is None:
        return DEFAULT_FORMATS
    names = tuple(name.strip().upper() for name in text.split(","))
    for name in names:
        if name not in cpu_experts.FORMATS:
            known = ", ".join(cpu_experts.FORMATS)
            raise LocalR1Error(f"there are no kernels for {name!r}", f"known: {known}", USAGE)
    return names


def run(
    formats: Iterable[str] = DEFAULT_FORMATS,
    seconds: float = DEFAULT_SECONDS,
    threads: int | None = None,
) -> dict[str, Any]:
    """The rows of each format, `seconds` for each; what the line of JSON holds."""
    if not 0 < seconds < math.inf:
        raise LocalR1Error(
            f"--seconds is {seconds:g}, and must be above 0", "--seconds 5 is usual", USAGE
        )
    cpu_experts.set_threads(threads)
    names, size = tuple(formats), working_set()
    rows = []
    with ProgressLine(sys.stderr) as progress:
        for row in bench_rows(names, seconds, size):
            rows.append(row)
            done = names.index(row["format"]) + 1
            progress.show(Progress(f"Measured {row['format']}", done, len(names), "kernels"))
    return {
        "machine": {**machine(), "tier": cpu_experts.tier()},
        "model": None,
        "limits": _limits(rows, size),
        "rows": rows,
    }


def _limits(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """The medians of the limits that were measured beside the rows."""

    def limit(phase: str) -> float | None:
        found = [row["limit"] for row in rows if row["phase"] == phase]
        return median(found) if found else None

    by_threads = [row["limit_by_threads"] for row in rows if row["phase"] == "decode"]
    return {
        "read_bandwidth": limit("decode"),
        "read_bandwidth_unit": "GB/s",
        "read_bandwidth_by_threads": {n: median(f[n] for f in by_threads) for n in by_threads[0]},
        "working_set": size,
        "working_set_per_last_cache": size / last_cache_bytes(),
        "huge_pages": median(row["huge_pages"] for row in rows if row["phase"] == "decode"),
        "vnni_peak": limit("prefill"),
        "vnni_peak_unit": "GOP/s",
    }


def refuse_impossible(rows: list[dict[str, Any]]) -> None:
    """LocalR1Error for a share that no kernel can have."""
    for row in rows:
        share = max(row["share"], row.get("memory_share", 0))
        if share > MOST:
            raise LocalR1Error(
                f"{row['format']} {row['phase']} reached {share:.2f} of the limit, "
                "so that was measured badly",
                "other programs may have used the machine meanwhile; run it again on a quiet one",
            )


def card(result: dict[str, Any]) -> str:
    """The result for a person."""
    host, limits = result["machine"], result["limits"]
    caches = limits["working_set_per_last_cache"]
    short = "" if caches >= CACHES else f", the most that fits (wanted: {CACHES})"
    speeds = limits["read_bandwidth_by_threads"].items()
    lines = [
        f"expert kernels ({host['tier']}) on {host['cpu']}, {host['cores']} cores, "
        f"{host['ram_bytes'] / 2**30:.0f} GiB",
        "  memory reads   " + ", ".join(f"{speed:.1f} GB/s with {n}" for n, speed in speeds)
        + " threads",
        f"  working set    {limits['working_set'] / 1e9:.1f} GB = {caches:.0f} last caches{short},"
        f" {limits['huge_pages']:.0%} in huge pages",
        f"  VNNI peak      {_figure(limits['vnni_peak'], 'GOP/s')}",
        "",
        "  a share is the median of the rounds, its quartiles in brackets",
    ]  # fmt: skip
    for row in result["rows"]:
        low, high = row["spread"]
        tokens = f"{row['tokens']} token" + "s" * (row["tokens"] > 1)
        lines.append(
            f"  {row['format']:<9}{row['phase']:<8}{tokens:>11}{row['threads']:>4} threads"
            f"{row['value']:>10,.1f} {row['unit']:<6}{row['share']:>5.0%} of the limit"
            f" ({low:.0%} to {high:.0%}, {row['rounds']} rounds)"
            + (f", {row['memory_share']:.0%} of that of memory" if "memory_share" in row else "")
        )
    return "\n".join(lines)


def _figure(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:,.1f} {unit}"
