"""Our experts on the common problem, and the limits of the machine.

python -m tests.peers.localr1_experts --format Q4_K --tokens 1 --rounds 5
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from cpu_experts import Activations, ExpertBank, QuantTensor, moe_forward, set_threads
from cpu_experts.bandwidth import best_way, read_seconds, vnni_operations_per_second
from tests.peers.problem import NAMES, Problem
from tests.peers.worker import serve


class Ours:
    """moe_forward on native blocks."""

    name = "localr1"

    def __init__(self, problem: Problem, threads: int) -> None:
        set_threads(threads)
        self.problem = problem
        self.memory = [
            {name: problem.weights(layer, name) for name in NAMES}
            for layer in range(problem.layers)
        ]
        self.banks = [
            ExpertBank(*(QuantTensor(problem.format, problem.shape(n), (layer[n],)) for n in NAMES))
            for layer in self.memory
        ]
        self.result = np.empty_like(problem.x)
        self.way: tuple[int, int] | None = None

    def call(self, layer: int, step: int) -> None:
        """One layer; the activation is quantised in each call, as a model has to."""
        problem = self.problem
        moe_forward(
            Activations(problem.x),
            problem.ids[step],
            problem.routing,
            self.banks[layer],
            out=self.result,
        )

    def output(self) -> np.ndarray:
        """float32 [tokens, hidden]."""
        return self.result

    def limit(self) -> dict[str, float]:
        """Read bandwidth over the same weights, or for many tokens the VNNI peak."""
        if not self.problem.decode:
            return {"GOP/s": vnni_operations_per_second() / 1e9}
        arrays = [array for layer in self.memory for array in layer.values()]
        self.way = self.way or best_way(arrays[0])
        seconds = sum(read_seconds(array, self.way) for array in arrays)
        return {"GB/s": sum(array.nbytes for array in arrays) / seconds / 1e9}


def make(problem: Problem, chosen: argparse.Namespace) -> Ours:
    """Ready to run."""
    return Ours(problem, chosen.threads)


if __name__ == "__main__":
    sys.exit(serve(make))
