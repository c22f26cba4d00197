"""`python -m cpu_experts.bench`: decode beside the read limit, as a card and one line of JSON.

Needs nothing but numpy and numba. `localr1 bench --kernels` is the whole comparison; this is for a
machine that has only this package.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from cpu_experts.bench import MOST, decode_row, filled_memory, memories, working_set
from cpu_experts.bench.pool_rows import pool_rows
from cpu_experts.cpu import tier
from cpu_experts.formats import FORMATS
from cpu_experts.pool import get_threads, set_threads


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cpu_experts.bench", description=__doc__)
    parser.add_argument("--formats", default="Q4_K,Q6_K", help="as in Q4_K,Q6_K")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each format")
    parser.add_argument("--gib", type=float, help="memory to read from (20 last caches)")
    parser.add_argument("--threads", type=int, help="instead of the physical cores")
    parser.add_argument("--pool", action="store_true", help="measure the worker pool, not formats")
    return parser.parse_args()


def _line(row: dict[str, Any]) -> str:
    if row["phase"] == "pool":
        return f"  {row['what']:<36} {row['value']:>8} {row['unit']:<12} goal {row['goal']}"
    low, high = row["spread"]
    return (
        f"  {row['format']:<10} {row['phase']} {row['value']:>8.2f} {row['unit']}"
        f"  share {row['share']:.3f} [{low:.3f} .. {high:.3f}]  {row['rounds']} rounds,"
        f" limit by threads {row['limit_by_threads']}"
    )


def main() -> int:
    """0, or 1 where a share says that the limit was measured badly."""
    wanted = _arguments()
    names = [name.strip().upper() for name in wanted.formats.split(",")]
    for name in names:
        if name not in FORMATS:
            sys.exit(f"there are no kernels for {name!r}; known: {', '.join(FORMATS)}")
    set_threads(wanted.threads)
    threads = get_threads()
    n_bytes = int(wanted.gib * (1 << 30)) if wanted.gib else working_set()
    print(f"  {threads} threads, tier {tier()}, {n_bytes / (1 << 30):.1f} GiB")
    rows = []
    if wanted.pool:
        for row in pool_rows(filled_memory(n_bytes), wanted.seconds):
            rows.append(row)
            print(_line(row), flush=True)
    else:
        for name, memory in memories(names, n_bytes):
            rows.append(decode_row(name, memory, wanted.seconds))
            print(_line(rows[-1]), flush=True)
    result = {"threads": threads, "bytes": n_bytes, "rows": rows}
    print(json.dumps(result))
    shares = [row["share"] for row in rows if "share" in row]
    if shares and statistics.median(shares) > MOST:
        print("the read limit was measured badly: a share is above 1.02", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
