"""Run R1's full shapes on this machine's GPU and write the figures into docs/benchmarks.md.

    python -m tools.record_gpu [--vram 24] [--ram GiB]

Runs of `localr1 bench --synthetic deepseek-r1`, each in a process of its own; RUNS says which. A
larger GPU is made small for real: another process holds all but what a card of that size leaves.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from tools.check_benchmarks import DOCUMENT

BEGIN, END = "<!-- gpu -->", "<!-- end of gpu -->"
LONG = ["--quant", "Q8_0", "--layers", "4", "--context", "131072", "--prefill", "131000"]
RUNS = (
    ("R1, 8K", ["--context", "8192", "--prefill", "4096"]),
    ("experts answer at once, 1K", ["--context", "1024", "--stub", "--ram", "8"]),
    ("experts answer at once, 8K", ["--context", "8192", "--stub", "--ram", "8"]),
    ("4 layers in Q8_0, 131K", [*LONG, "--tokens", "3"]),
)
_HELD = 0.98  # of a card's memory is what CUDA shows of it


def measured(options: list[str]) -> dict[str, Any]:
    """One run's line of JSON."""
    command = [sys.executable, "-m", "localr1", "bench", "--synthetic", "deepseek-r1", "--json"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def ballast(vram: float) -> Iterator[None]:
    """Another process holds all of the GPU's memory but what a card of `vram` GiB would give."""
    code = (
        "import sys, torch\n"
        f"more = torch.cuda.mem_get_info()[0] - int({vram * _HELD} * 2**30)\n"
        "held = torch.empty(max(more, 0), dtype=torch.uint8, device='cuda')\n"
        "print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.stdin.close()
        holder.wait()


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
    with ballast(float(options.vram)):
        results = {name: measured([*more, *ram, *given]) for name, given in RUNS}
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", "utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
