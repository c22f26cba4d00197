"""Our experts and a peer's in turns on the same weights: the ratio of each pair, and its spread.

    python -m tests.peers.compare [--formats Q4_K,Q8_0] [--tokens 1,512] [--prefill Q4_K]
                                  [--rounds 15] [--peers llama.cpp,ik_llama.cpp,kt-kernel] [--write]

Each runner is a process of its own, stopped while it is not its turn. A round is: the limit
(reading the same memory, or the VNNI peak), then ours and the peer alternately, twice each; the
better turn counts. The peer's two turns have different settings (threads that spin or sleep at
barriers; for kt-kernel fewer threads), so that each round finds it at its best: where another
program takes a core, spinning can cost it half its speed. What a noisy machine does to both sides
of a pair cancels in its ratio, and rounds in which other programs used the cores are the
last to count. A peer that is missing is named. The last line is JSON; `--write` puts the table
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from tests.peers import report
from tools.check_benchmarks import kernel_hash

_SETTLE = 0.02  # seconds for a process to come back from its stop
_QUIET = 0.2  # cores that other programs may use in a round that counts
_SAME = 0.05  # relative L2 distance of outputs that are the same but for int8 or BF16 rounding


@dataclass(frozen=True)
class Peer:
    """A runner's module and its flags."""

    module: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """Threads, and what OpenMP's threads do while they wait."""

    threads: int
    wait: str = "passive"

    @property
    def environment(self) -> dict[str, str]:
        """Of the process."""
        return {**os.environ, "OMP_WAIT_POLICY": self.wait}


OURS = Peer("localr1_experts")
PEERS = {
    "llama.cpp": Peer("llama_cpp_experts"),
    "llama.cpp plain": Peer("llama_cpp_experts", ("--plain",)),
    "ik_llama.cpp": Peer("ik_llama_experts"),
    "ik_llama.cpp plain": Peer("ik_llama_experts", ("--plain",)),
    "kt-kernel": Peer("kt_experts"),
}


class Missing(Exception):
    """A peer that is not there."""


class Process:
    """A runner that has loaded its weights, stopped but for its own turns."""

    def __init__(self, peer: Peer, flags: list[str], setting: Setting) -> None:
        self.setting = setting
        command = [sys.executable, "-m", f"tests.peers.{peer.module}", *flags, *peer.flags]
        self._process = subprocess.Popen(
            [*command, "--threads", str(setting.threads)],
            env=setting.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("LOCALR1_PEERS_VERBOSE") else None,
            text=True,
        )
        self.pid = self._process.pid
        self.hello = self._read()
        self._process.send_signal(signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise Missing(f"it ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """One turn."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        time.sleep(_SETTLE)
        print(command, file=self._process.stdin, flush=True)
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def settings(name: str, threads: int) -> list[Setting]:
    """The two settings that a peer takes turns with."""
    if name == "kt-kernel":
        return [Setting(threads), Setting(max(1, threads // 2))]
    return [Setting(threads, "passive"), Setting(threads, "active")]


def distance(ours: Process, theirs: Process) -> float:
    """Relative L2 distance of the two outputs."""
    a, b = (np.array(side.hello["output"]) for side in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def rounds(ours: Process, theirs: list[Process], count: int, unit: str) -> list[dict[str, float]]:
    """limit, ours and theirs, in `unit`, of `count` rounds: the first quiet ones, where other
    programs used less than _QUIET cores, or of three times as many the quietest.
    """
    found: list[dict[str, float]] = []
    for number in range(3 * count + 1):
        before, began = _foreign([ours, *theirs]), time.perf_counter()
        values = {"limit": ours.ask("limit")[unit], "ours": 0.0, "theirs": 0.0}
        for their in theirs:
            sides = [("ours", ours), ("theirs", their)]
            for name, side in sides if number % 2 else sides[::-1]:
                values[name] = max(values[name], side.ask("run")[unit])
        values["foreign"] = _foreign([ours, *theirs]) - before
        values["foreign"] /= time.perf_counter() - began
        if number:  # the first one warms up
            found.append(values)
        if sum(pair["foreign"] < _QUIET for pair in found) == count:
            break
    return sorted(found, key=lambda pair: pair["foreign"])[:count]


def compare(ours: Process, name: str, problem: argparse.Namespace, count: int) -> dict[str, Any]:
    """The row of one peer: medians and quartiles of the paired ratios and shares."""
    unit = "GB/s" if problem.tokens == 1 else "GOP/s"
    theirs: list[Process] = []
    try:
        for setting in settings(name, ours.setting.threads):
            theirs.append(Process(PEERS[name], problem.flags, setting))
        apart = distance(ours, theirs[0])
        if not apart < _SAME:
            raise Missing(f"its output is not ours: relative distance {apart:.3f}")
        pairs = rounds(ours, theirs, count, unit)
    finally:
        for process in theirs:
            process.close()
    return {
        "peer": name,
        "name": theirs[0].hello["name"],
        "format": problem.format,
        "phase": "decode" if problem.tokens == 1 else "prefill",
        "tokens": problem.tokens,
        "threads": ours.setting.threads,
        "unit": unit,
        "distance": apart,
        "rounds": len(pairs),
        "foreign": max(pair["foreign"] for pair in pairs),
        "limit": statistics.median(pair["limit"] for pair in pairs),
        "ours": statistics.median(pair["ours"] for pair in pairs),
        "theirs": statistics.median(pair["theirs"] for pair in pairs),
        "ratio": quartiles([pair["ours"] / pair["theirs"] for pair in pairs]),
        "share": quartiles([pair["ours"] / pair["limit"] for pair in pairs]),
        "their_share": quartiles([pair["theirs"] / pair["limit"] for pair in pairs]),
    }


def _foreign(runners: list[Process]) -> float:
    """CPU seconds that programs beside the runners have used."""
    busy = psutil.cpu_times()
    own = sum(sum(psutil.Process(side.pid).cpu_times()[:2]) for side in runners)
    return busy.user + busy.nice + busy.system - own


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, middle, high]


def measure(
    kind: str,
    tokens: int,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    missing: list[dict[str, Any]],
) -> None:
    """All peers on one format and number of tokens: adds to `rows`, or to `missing`."""
    flags = ["--format", kind, "--tokens", str(tokens), "--gib", str(options.gib)]
    ours = Process(OURS, flags, Setting(options.threads))
    problem = argparse.Namespace(format=kind, tokens=tokens, flags=flags)
    try:
        for name in options.peers.split(","):
            try:
                rows.append(compare(ours, name, problem, options.rounds))
                print(report.line(rows[-1]), flush=True)
            except Missing as reason:
                what = {"peer": name, "format": kind, "tokens": tokens, "reason": str(reason)}
                missing.append(what)
                print(f"{kind:<8} {tokens:>4}  {name:<18} missing: {reason}", flush=True)
    finally:
        ours.close()


def main() -> int:
    """Measure all pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="Q4_K,Q8_0,Q6_K,Q5_K,Q2_K,Q3_K,IQ4_XS")
    parser.add_argument("--tokens", default="1,512", help="1 is decode, more is prefill")
    parser.add_argument("--prefill", help="formats for more than one token, if fewer")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gib", type=float, default=3.0, help="about the size of a set of weights")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    options = parser.parse_args()
    measured = kernel_hash()  # of the sources that the runners are about to load
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for tokens in map(int, options.tokens.split(",")):
        formats = options.prefill if tokens > 1 and options.prefill else options.formats
        for kind in formats.split(","):
            measure(kind, tokens, options, rows, missing)
            if options.write:
                report.write(rows, missing, options, measured)
    print(json.dumps(report.result(rows, missing)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
