"""`localr1 bench --kernels`: each format's kernels beside the limits of this machine.

The measuring is cpu_experts.bench's: R1's shapes, each round beside a read of as many bytes
(decode) or the VNNI peak (prefill). Here: how much memory to use, whether fewer threads read
faster, the card, and the refusal of a share that cannot be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np
import psutil

import cpu_experts
from cpu_experts.bandwidth import best_distance, read_seconds
from cpu_experts.bench import bench_rows
from localr1.bench import MOST, SET_PER_L3, last_cache_bytes, machine
from localr1.errors import USAGE, LocalR1Error
from localr1.events import Progress
from localr1.progress import ProgressLine

DEFAULT_FORMATS = ("Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS")
DEFAULT_SECONDS = 5.0
_PROBE_BYTES = 1 << 30  # of a read that only compares thread counts
_PROBE_ROUNDS = 7


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
    if seconds <= 0:
        raise LocalR1Error("--seconds must be above 0", "--seconds 5 is usual", USAGE)
    cpu_experts.set_threads(threads)
    names, size = tuple(formats), working_set()
    by_threads = bandwidth_by_threads(min(size, _PROBE_BYTES))
    # The limit beside a round is read with all threads; where fewer read faster, that is the limit.
    advantage = max(1.0, max(by_threads.values()) / by_threads[cpu_experts.get_threads()])
    rows = []
    with ProgressLine(sys.stderr) as progress:
        for row in bench_rows(names, seconds, size):
            rows.append(_against(row, advantage) if row["phase"] == "decode" else row)
            done = names.index(row["format"]) + 1
            progress.show(Progress(f"Measured {row['format']}", done, len(names), "kernels"))
    return {
        "machine": {**machine(), "tier": cpu_experts.tier()},
        "model": None,
        "limits": _limits(rows, by_threads, size),
        "rows": rows,
    }


def working_set() -> int:
    """Bytes of weights: 20 last-level caches, or a third of the free RAM if that is less."""
    return min(SET_PER_L3 * last_cache_bytes(), psutil.virtual_memory().available // 3)


def bandwidth_by_threads(size: int) -> dict[int, float]:
    """GB/s of prefetched reads of `size` bytes with one, half and all threads.

    They take turns, and the median counts: a moment's noise must not look like an advantage.
    """
    wanted = cpu_experts.get_threads()
    memory = np.ones(size, dtype=np.uint8)
    ahead = best_distance(memory)
    speeds: dict[int, list[float]] = {n: [] for n in sorted({1, max(1, wanted // 2), wanted})}
    for _ in range(_PROBE_ROUNDS):
        for count, found in speeds.items():
            cpu_experts.set_threads(count)
            read_seconds(memory[: 1 << 20], ahead)  # the new workers come up
            found.append(size / read_seconds(memory, ahead) / 1e9)
    cpu_experts.set_threads(wanted)
    return {count: median(found) for count, found in speeds.items()}


def _against(row: dict[str, Any], advantage: float) -> dict[str, Any]:
    """A decode row against the limit of the best number of threads."""
    spread = [share / advantage for share in row["spread"]]
    return {**row, "share": row["share"] / advantage, "spread": spread}


def _limits(rows: list[dict[str, Any]], by_threads: dict[int, float], size: int) -> dict[str, Any]:
    """The medians of the limits that were measured beside the rows."""

    def limit(phase: str) -> float | None:
        found = [row["value"] / row["share"] for row in rows if row["phase"] == phase]
        return median(found) if found else None

    return {
        "read_bandwidth": limit("decode"),
        "read_bandwidth_unit": "GB/s",
        "read_bandwidth_by_threads": by_threads,
        "working_set": size,
        "working_set_per_last_cache": size / last_cache_bytes(),
        "vnni_peak": limit("prefill"),
        "vnni_peak_unit": "GOP/s",
    }


def refuse_impossible(rows: list[dict[str, Any]]) -> None:
    """LocalR1Error for a share that no kernel can have."""
    for row in rows:
        if row["share"] > MOST:
            raise LocalR1Error(
                f"{row['format']} {row['phase']} reached {row['share']:.2f} of the limit, "
                "so that was measured badly",
                "other programs may have used the machine meanwhile; run it again on a quiet one",
            )


def card(result: dict[str, Any]) -> str:
    """The result for a person."""
    host, limits = result["machine"], result["limits"]
    caches = limits["working_set_per_last_cache"]
    short = "" if caches >= SET_PER_L3 else f", the most that fits (wanted: {SET_PER_L3})"
    speeds = limits["read_bandwidth_by_threads"].items()
    lines = [
        f"expert kernels ({host['tier']}) on {host['cpu']}, {host['cores']} cores, "
        f"{host['ram_bytes'] / 2**30:.0f} GiB",
        "  memory reads   " + ", ".join(f"{speed:.1f} GB/s with {n}" for n, speed in speeds)
        + " threads; beside the kernels " + _figure(limits["read_bandwidth"], "GB/s"),
        f"  working set    {limits['working_set'] / 1e9:.1f} GB = {caches:.0f} last caches{short}",
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
        )
    return "\n".join(lines)


def _figure(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:,.1f} {unit}"
