"""Run R1's full shapes on this machine's GPU and write the figures into docs/benchmarks.md.

    python -m tools.record_gpu [--vram 24] [--ram GiB]

Three runs of `localr1 bench --synthetic deepseek-r1`, each in a process of its own: decode at 8,192
tokens with a prompt of 4,096, then decode at 1,024 and at 8,192 with experts that answer at once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from tools.check_benchmarks import DOCUMENT

BEGIN, END = "<!-- gpu -->", "<!-- end of gpu -->"
RUNS = (
    ("R1, 8K", ["--context", "8192", "--prefill", "4096"]),
    ("experts answer at once, 1K", ["--context", "1024", "--stub", "--ram", "8"]),
    ("experts answer at once, 8K", ["--context", "8192", "--stub", "--ram", "8"]),
)


def measured(options: list[str]) -> dict[str, Any]:
    """One run's line of JSON."""
    command = [sys.executable, "-m", "localr1", "bench", "--synthetic", "deepseek-r1", "--json"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """A line for each figure."""
    lines = []
    for row in result["rows"]:
        if row["phase"] == "load":
            continue
        share = "" if row["share"] is None else f"{row['share']:.2f}"
        lines.append(f"| {name} | {row['name']} | {row['value']:,.2f} {row['unit']} | {share} |")
    taken, plan = result["plan"]["vram_measured"], result["plan"]["vram"]
    if taken is not None:
        gib = 1 << 30
        lines.append(f"| {name} | VRAM, plan's {plan / gib:.2f} | {taken / gib:.2f} GiB | |")
    return lines


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table and what it was measured on."""
    first = next(iter(results.values()))
    host, gpu, run = first["machine"], first["machine"]["gpu"], first["synthetic"]
    where = gpu["name"] if gpu else "no GPU"
    distinct, routed = (run[name] / (1 << 30) for name in ("distinct_bytes", "routed_bytes"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numba"))
    facts = (
        f"{datetime.date.today()}, {where}, driver {gpu['driver'] if gpu else '-'}; {host['cpu']}, "
        f"{host['cores']} cores; {versions}; Q4_K_M, {distinct:.0f} of {routed:.0f} GiB of routed "
        "experts distinct."
    )
    lines = ["| run | what | value | share of the limit |", "|---|---|---|---|"]
    lines += [line for name, result in results.items() for line in rows(name, result)]
    return "\n".join([*lines, "", facts])


def main() -> None:
    """Measure, then replace what stands between the marks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--vram", default="24", help="GiB to keep to")
    parser.add_argument("--ram", help="GiB for routed experts; what is free if left out")
    options = parser.parse_args()
    more = ["--vram", options.vram]
    ram = ["--ram", options.ram] if options.ram else []
    results = {name: measured([*more, *ram, *given]) for name, given in RUNS}
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
