"""What the runners have in common: options, and one row of JSON per round, when it is asked for.

The first row says what runs and holds a part of its output, so that whoever compares can see that
two runners computed the same. Then each line read from stdin ("run" or "limit") gives one row;
`--rounds N` needs no stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from tests.peers.problem import Problem

SAMPLE = 7  # every 7th value of the first token's output goes into the first row
MISSING = 3  # exit code: this peer is not installed, or cannot do this


class Runner(Protocol):
    """One runner with its weights loaded."""

    name: str

    def call(self, layer: int, step: int) -> None:
        """One MoE layer on the problem's tokens."""

    def output(self) -> np.ndarray:
        """float32 [tokens, hidden] of the last call."""


class Missing(Exception):
    """The peer is not there, or has no way to do what is asked; the text says which."""


def options() -> argparse.Namespace:
    """The command line of every runner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", default="Q4_K")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--gib", type=float, default=3.0, help="about the size of the set in decode"
    )
    parser.add_argument("--plain", action="store_true", help="without repacked weights")
    parser.add_argument("--rounds", type=int, default=0)
    return parser.parse_args()


def serve(make: Callable[[Problem, argparse.Namespace], Runner]) -> int:
    """Load, say so, and run the rounds that are asked for."""
    chosen = options()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer's library prints belongs to stderr
    problem = Problem(chosen.format, chosen.tokens, chosen.gib)
    try:
        runner = make(problem, chosen)
    except Missing as reason:
        answers.write(json.dumps({"missing": str(reason)}) + "\n")
        return MISSING
    _round(runner, problem)
    runner.call(*problem.calls[0])
    sample = runner.output().reshape(problem.tokens, -1)[0, ::SAMPLE]
    hello = {"name": runner.name, "calls": len(problem.calls), "bytes": problem.bytes}
    answers.write(json.dumps({**hello, "output": sample.tolist()}) + "\n")
    commands: Iterable[str] = ["run"] * chosen.rounds if chosen.rounds else sys.stdin
    for command in commands:
        answers.write(json.dumps(_answer(command.strip(), runner, problem)) + "\n")
    return 0


def _answer(command: str, runner: Runner, problem: Problem) -> dict[str, Any]:
    if command == "run":
        seconds = _round(runner, problem)
        return {
            "seconds": seconds,
            "GB/s": problem.bytes / seconds / 1e9,
            "GOP/s": problem.operations / seconds / 1e9,
        }
    limit: Callable[[], dict[str, float]] = getattr(runner, command)
    return limit()


def _round(runner: Runner, problem: Problem) -> float:
    began = time.perf_counter()
    for layer, step in problem.calls:
        runner.call(layer, step)
    return time.perf_counter() - began
