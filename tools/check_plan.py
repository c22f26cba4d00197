"""Compare what the plan predicts with what happens: RAM, decoding, reading a prompt.

    python -m tools.check_plan [MODEL ...] [--folder DIR] [--rounds 5]

Without models: tiny-r1, and a random model of 4 GiB in R1's layer shapes, written to DIR once. Each
model runs in a process of its own. Memory is the process's peak, mapped pages included, against the
plan's RAM without its margin. Speeds are the best of some rounds, with the machine measured between
and after them in the same process: the better of each counts, because other programs can only slow
things down. Exits with 1 when a ratio lies outside its bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import localr1
from localr1 import machine
from localr1.models import inventory
from localr1.models.source import open_source
from offload.planner import plan
from offload.predict import DEPTH, PROMPT
from tools.make_random_model import make_random_model

BOUNDS = {"peak RAM": 0.03, "decode": 0.15, "prefill": 0.25}
_CONTEXT = 1280  # a prompt of PROMPT tokens, and decoding at DEPTH
_STEPS = 24
_LEAST_SECONDS = 3.0  # of each measurement: a small model is disturbed in most of its rounds


def measure(model: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each of BOUNDS: predicted, measured, and by how much they differ."""
    llm = localr1.load(model, context=_CONTEXT)
    engine = llm.engine
    found = engine.placement
    assert found is not None
    rng = np.random.default_rng(0)
    vocab = llm.config.vocab_size
    prompt = rng.integers(10, vocab, PROMPT).tolist()
    long = rng.integers(10, vocab, DEPTH - _STEPS // 2).tolist()
    list(engine.prefill(prompt[:64]))
    read = _quickest(lambda: _seconds_to_read(engine, prompt), rounds)
    peak = _peak_bytes()
    hardware = [machine.hardware(remeasure=True)]
    wrote = _quickest(lambda: _seconds_to_write(engine, long), 1)
    hardware.append(machine.hardware(remeasure=True))
    quickest = replace(
        hardware[0],
        gpus=(),  # the engine computes on the CPU
        ram_bandwidth=max(seen.ram_bandwidth for seen in hardware),
        int8_ops=max(seen.int8_ops for seen in hardware),
    )
    stock = inventory.from_source(open_source(llm.path), llm.config)
    expected = plan(stock.weights, quickest, PROMPT + 1, stock.demands)
    ram = sum(item.nbytes for item in expected.ram if item.name != "margin")
    speeds = expected.prediction
    rows = [
        ("peak RAM", "GiB", ram / 2**30, peak / 2**30),
        ("decode", "tokens/s", speeds.decode_tps, 1 / wrote),
        ("prefill", "tokens/s", speeds.prefill_tps, PROMPT / read),
    ]
    speeds_seen = [
        f"{h.ram_bandwidth / 1e9:.1f} GB/s {h.int8_ops / 1e12:.2f} TOP/s" for h in hardware
    ]
    print(
        f"{llm.name}: {', then '.join(speeds_seen)}; load {os.getloadavg()[0]:.1f}", file=sys.stderr
    )
    return [
        {"model": llm.name, "what": what, "unit": unit, "predicted": p, "measured": m}
        for what, unit, p, m in rows
    ]


def _seconds_to_read(engine: Any, prompt: list[int]) -> float:
    list(engine.prefill([9, *prompt[1:2]]))  # another beginning, so that nothing is kept
    began = time.perf_counter()
    list(engine.prefill(prompt))
    return time.perf_counter() - began


def _seconds_to_write(engine: Any, before: list[int]) -> float:
    """The quickest of some tokens behind these."""
    list(engine.prefill(before))
    took = []
    for token in before[:_STEPS]:
        began = time.perf_counter()
        engine.step(token)
        took.append(time.perf_counter() - began)
    return min(took)


def _quickest(seconds: Callable[[], float], rounds: int) -> float:
    """The least of `rounds` times, or of as many as a few seconds have room for."""
    until, took = time.monotonic() + _LEAST_SECONDS, [seconds() for _ in range(rounds)]
    while time.monotonic() < until:
        took.append(seconds())
    return min(took)


def _peak_bytes() -> int:
    """The most RAM that this process ever had, shared and mapped pages included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def in_a_process_of_its_own(model: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of `measure`, whose peak memory then is the model's."""
    # What compiles kernels needs 90 MiB more: leave that to another process.
    warm = f"import localr1; localr1.load({model!r}, context={_CONTEXT})"
    subprocess.run([sys.executable, "-c", warm], check=True)
    command = [sys.executable, "-m", "tools.check_plan", "--child", model, "--rounds", str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    error = row["predicted"] / row["measured"] - 1
    bound = BOUNDS[row["what"]]
    kept = "yes" if abs(error) <= bound else "NO"
    numbers = f"{row['predicted']:,.2f} | {row['measured']:,.2f} {row['unit']}"
    return f"| {row['model']} | {row['what']} | {numbers} | {error:+.1%} | {bound:.0%} | {kept} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="predicted against measured")
    parser.add_argument("models", nargs="*", help="names, files or folders of MoE models")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the random model lies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.rounds)))
        return
    random_model = args.folder / "random-r1-4GiB.gguf"
    if not args.models and not random_model.is_file():
        make_random_model(random_model, 4 << 30, experts=64)  # 256 of them take 6 GiB a layer
    print("| model | what | predicted | measured | error | bound | kept |\n" + "|---" * 7 + "|")
    kept = True
    for model in args.models or ["tiny-r1", str(random_model)]:
        for row in in_a_process_of_its_own(model, args.rounds):
            print(line(row), flush=True)
            kept &= abs(row["predicted"] / row["measured"] - 1) <= BOUNDS[row["what"]]
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
