"""ik_llama.cpp's experts: row-interleaved weights (its -rtr) and the fused gate and up (its -fmoe).

    python -m tests.peers.ik_llama_experts --format Q4_K --tokens 1 --rounds 5 [--plain]

The library is one compiled for this machine, in .venv/peers/ik-native, else the one of PyPI's wheel
in .venv/peers/ik, which has no AVX-512 (README.md). `--plain` leaves the weights as the file has
them; the fused operations stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from cpu_experts import FORMATS
from tests.peers.ggml import Layers, Library
from tests.peers.problem import NAMES, Problem
from tests.peers.worker import Missing, serve

_SILU = 10  # GGML_UNARY_OP_SILU
PEERS = Path(sys.prefix) / "peers"
NATIVE = PEERS / "ik-native" / "libggml.so"
_WHEEL = PEERS / "ik" / "ik_llama_cpp" / "lib" / "libggml.so"


def library() -> Library:
    """ik_llama.cpp's ggml."""
    for path in (NATIVE, _WHEEL):
        if path.exists():
            return Library(path)
    raise Missing(f"ik_llama.cpp is not installed: no {NATIVE}, no {_WHEEL}")


class IkLlama:
    """Weights and graph as its llm_build_moe_ffn makes them with -rtr and -fmoe."""

    def __init__(self, ggml: Library, problem: Problem, repacked: bool) -> None:
        self.ggml, self.problem, self.repacked = ggml, problem, repacked
        self.kept: list[np.ndarray] = []

    def weights(self, layer: int) -> list[int]:
        """gate, up and down of a layer, repacked in place."""
        ggml, problem = self.ggml, self.problem
        context = ggml.context(1 << 16, no_alloc=True)
        tensors = []
        for name in NAMES:
            experts, rows, cols = problem.shape(name)
            kind = FORMATS[problem.format].ggml_type
            tensor = ggml.ggml_new_tensor_3d(context, kind, cols, rows, experts)
            source = problem.weights(layer, name)
            self.kept.append(source)
            buffer = ggml.ggml_backend_cpu_buffer_from_ptr(source.ctypes.data, source.nbytes)
            ggml.ggml_backend_tensor_alloc(buffer, tensor, source.ctypes.data)
            if self.repacked:
                self._repack(tensor)
            tensors.append(tensor)
        return tensors

    def _repack(self, tensor: int) -> None:
        """To the interleaved type of its format; one that has none stays as it is."""
        if self.ggml.iqk_repacked_type(tensor) == FORMATS[self.problem.format].ggml_type:
            self.repacked = False
        else:
            self.ggml.iqk_repack_tensor(tensor)

    def experts(self, context: int, weights: list[int], x: int, ids: int) -> int:
        """gate, up and SwiGLU in one operation, then down."""
        ggml = self.ggml
        gate, up, down = weights
        hidden = ggml.ggml_moe_up_gate(context, up, gate, x, ids, _SILU)
        return ggml.ggml_mul_mat_id(context, down, hidden, ids)

    def total(self, context: int, experts: int, routing: int) -> int:
        """The weighted sum, in one operation."""
        return self.ggml.ggml_mul_multi_add(context, experts, routing)


class Runner(Layers):
    """Named for the rows."""

    name = "ik_llama.cpp"


def make(problem: Problem, chosen: argparse.Namespace) -> Runner:
    """Ready to run."""
    ggml = library()
    if FORMATS[problem.format].ggml_type is None:
        raise Missing(f"ik_llama.cpp does not know {problem.format}")
    peer = IkLlama(ggml, problem, not chosen.plain)
    runner = Runner(ggml, problem, chosen.threads, peer)
    runner.name += " repacked" if peer.repacked else ""
    return runner


if __name__ == "__main__":
    sys.exit(serve(make))
