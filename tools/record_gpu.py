"""Run R1's and its distills' shapes on this machine's GPU; write the figures in docs/benchmarks.md.

    python -m tools.record_gpu [--vram 24] [--ram GiB]

Runs of `localr1 bench --synthetic`, each in a process of its own; RUNS says which. A larger GPU is
made small for real: another process holds all but what a card of that size leaves. Where a run
fails, because it does not fit for instance, a row says why. Without a GPU nothing is run.
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
from pathlib import Path
from typing import Any

from localr1.engine.device import CUDA, room
from localr1.errors import LocalR1Error
from tools.check_benchmarks import DOCUMENT

BEGIN, END = "<!-- gpu -->", "<!-- end of gpu -->"
R1, SMALL = "deepseek-r1", ["--ram", "24"]  # GiB: many times any cache
PROMPT = ["--layers", "9", "--context", "4608", "--prefill", "4096"]
LONG = ["--quant", "Q8_0", "--layers", "4", "--context", "131072", "--prefill", "131000"]
DENSE = ["--context", "4096", "--prefill", "4000"]
RUNS = (
    ("R1, 8K", R1, ["--context", "8192", "--prefill", "2048"]),
    ("R1, 1K", R1, ["--context", "1024", "--prefill", "1000", *SMALL]),
    ("R1, 32K", R1, ["--context", "32768", "--prefill", "32000", *SMALL]),
    ("R1, 8K, experts answer at once", R1, ["--context", "8192", "--stub", "--ram", "8"]),
    ("9 layers of R1, a prompt of 4K", R1, [*PROMPT, *SMALL]),
    ("4 layers of R1 in Q8_0, a prompt of 131K", R1, [*LONG, "--tokens", "3", *SMALL]),
    ("7B", "deepseek-r1:7b", DENSE),
    ("7B, 6 GiB of VRAM", "deepseek-r1:7b", [*DENSE, "--vram", "6"]),
    ("7B, 4 GiB of VRAM", "deepseek-r1:7b", [*DENSE, "--vram", "4"]),
    ("14B, 8 GiB of VRAM", "deepseek-r1:14b", [*DENSE, "--vram", "8"]),
)
_HELD = 0.98  # of a card's memory is what CUDA shows of it


class Failed(Exception):
    """A run without a result; says why."""


def measured(model: str, options: list[str]) -> dict[str, Any]:
    """One run's line of JSON. Raises Failed."""
    command = [sys.executable, "-m", "localr1", "bench", "--synthetic", model, "--json"]
    command += ["--device", "cuda", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        why = said[0].removeprefix("error: ") if said else "it said nothing"
        raise Failed(f"{why} (exit code {done.returncode})")
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
    try:
        if not holder.stdout.readline():
            raise Failed(f"the GPU does not leave {vram:g} GiB to be measured in")
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
    if plan["decode"] is not None:
        what = f"decode, as planned behind {plan['decode_depth']:,} tokens"
        lines.append(f"| {name} | {what} | {plan['decode']:,.2f} tokens/s | |")
        again = f"{plan['decode_meanwhile']:,.2f} tokens/s"
        lines.append(f"| {name} | the same for RAM as fast as it was meanwhile | {again} | |")
    if plan["vram_measured"] is not None:
        taken, planned = (plan[key] / gib for key in ("vram_measured", "vram"))
        lines.append(f"| {name} | VRAM, plan's {planned:.2f} | {taken:.2f} GiB | |")
    if plan["ram_measured"] is not None:
        taken, planned = (plan[key] / gib for key in ("ram_measured", "ram_held"))
        lines.append(f"| {name} | RAM held, plan's {planned:.2f} | {taken:.2f} GiB | |")
    return lines


def table(results: dict[str, dict[str, Any]], failures: dict[str, str]) -> str:
    """The table, what it was measured on, and what was not measured. One result at least."""
    title, first = next(iter(results.items()))
    host, gpu, run = first["machine"], first["machine"]["gpu"], first["synthetic"]
    where = f"{gpu['name']}, driver {gpu['driver']}" if gpu else "no GPU"
    distinct, routed = (run[name] / (1 << 30) for name in ("distinct_bytes", "routed_bytes"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numba"))
    facts = (
        f"{datetime.date.today()}, {where}; {host['cpu']}, {host['cores']} cores; {versions}; "
        f'Q4_K_M, {distinct:.0f} of {routed:.0f} GiB of {run["in_ram"]} distinct in "{title}".'
    )
    lines = ["| run | what | value | share of the limit |", "|---|---|---|---|"]
    lines += [line for name, result in results.items() for line in rows(name, result)]
    lines += [f"| {name} | not measured | {why} | |" for name, why in failures.items()]
    return "\n".join([*lines, "", facts])


def record(text: str, document: Path = DOCUMENT) -> None:
    """Put `text` where the last record stands."""
    whole = document.read_text("utf-8")
    before, _, rest = whole.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def run_all(more: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The results of RUNS, told as they come, and why others have none."""
    results: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for name, model, given in RUNS:
        try:
            results[name] = measured(model, [*more, *given])
        except Failed as failed:
            failures[name] = str(failed)
            print(f"{name}: {failed}", file=sys.stderr, flush=True)
        else:
            print(*rows(name, results[name]), sep="\n", flush=True)
    return results, failures


def main() -> None:
    """Measure, then replace what stands between the marks, unless nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--vram", default="24", help="GiB to keep to")
    parser.add_argument("--ram", help="GiB for routed experts; what is free if left out")
    options = parser.parse_args()
    try:
        room(CUDA, None, None, None, lambda progress: None)
        more = ["--vram", options.vram, *(["--ram", options.ram] if options.ram else [])]
        with ballast(float(options.vram)):
            results, failures = run_all(more)
    except (Failed, LocalR1Error) as problem:
        sys.exit(f"record_gpu: {problem}; docs/benchmarks.md is as it was")
    if not results:
        sys.exit("record_gpu: no run gave a result; docs/benchmarks.md is as it was")
    record(table(results, failures))


if __name__ == "__main__":
    main()
