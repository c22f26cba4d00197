"""Run R1's and its distills' shapes on this machine's GPU; write the figures in docs/benchmarks.md.

    python -m tools.record_gpu [--vram 24] [--ram GiB]

Runs of `localr1 bench --synthetic`, each in a process of its own; RUNS says which. A larger GPU is
made small for real: another process holds all but what a card of that size leaves.
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
R1, SMALL = "deepseek-r1", ["--ram", "24"]  # GiB: many times any cache
LONG = ["--quant", "Q8_0", "--layers", "4", "--context", "131072", "--prefill", "131000"]
DENSE = ["--context", "4096", "--prefill", "4000"]
RUNS = (
    ("R1, 8K", R1, ["--context", "8192"]),
    ("R1, 1K", R1, ["--context", "1024", *SMALL]),
    ("R1, 32K", R1, ["--context", "32768", *SMALL]),
    ("R1, 8K, experts answer at once", R1, ["--context", "8192", "--stub", "--ram", "8"]),
    ("9 layers of R1, a prompt of 4K", R1, ["--layers", "9", "--prefill", "4096", *SMALL]),
    ("4 layers of R1 in Q8_0, a prompt of 131K", R1, [*LONG, "--tokens", "3", *SMALL]),
    ("7B", "deepseek-r1:7b", DENSE),
    ("7B, 6 GiB of VRAM", "deepseek-r1:7b", [*DENSE, "--vram", "6"]),
    ("7B, 4 GiB of VRAM", "deepseek-r1:7b", [*DENSE, "--vram", "4"]),
    ("14B, 8 GiB of VRAM", "deepseek-r1:14b", [*DENSE, "--vram", "8"]),
)
_HELD = 0.98  # of a card's memory is what CUDA shows of it


def measured(model: str, options: list[str]) -> dict[str, Any]:
    """One run's line of JSON."""
    command = [sys.executable, "-m", "localr1", "bench", "--synthetic", model, "--json"]
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
    plan, gib = result["plan"], 1 << 30
    if not result["synthetic"]["stub"]:
        what = f"decode, as planned behind {plan['decode_depth']:,} tokens"
        lines.append(f"| {name} | {what} | {plan['decode']:,.2f} tokens/s | |")
    if plan["vram_measured"] is not None:
        taken, planned = (plan[key] / gib for key in ("vram_measured", "vram"))
        lines.append(f"| {name} | VRAM, plan's {planned:.2f} | {taken:.2f} GiB | |")
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
        results = {}
        for name, model, given in RUNS:
            results[name] = measured(model, [*more, *ram, *given])
            print(*rows(name, results[name]), sep="\n", flush=True)
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
