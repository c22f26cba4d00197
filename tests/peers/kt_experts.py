"""kt-kernel's experts (KTransformers), its LLAMAFILE backend: GGUF blocks, BF16 in and out.

    python -m tests.peers.kt_experts --format Q4_K --tokens 1 --threads 1 --rounds 5

Set up as its LlamafileMoEWrapper does, without the GPU's half of the handoff. The wheel lies in
.venv/peers/kt (README.md).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.peers.problem import HIDDEN, INTER, NAMES, TOP, Problem
from tests.peers.worker import Missing, serve

_FOLDER = Path(sys.prefix) / "peers" / "kt"
_BLOCK_ROWS, _SINGLES, _CHUNK = 32, 10, 2048  # m_block, group_min_len, max_len: its own values


def extension() -> Any:
    """kt-kernel's compiled module, the variant that it picks for this CPU."""
    if not (_FOLDER / "kt_kernel").exists():
        raise Missing(f"kt-kernel is not installed: no {_FOLDER}")
    sys.path.append(str(_FOLDER))
    return importlib.import_module("kt_kernel").kt_kernel_ext


class KtKernel:
    """One MOE object per layer, all on one pool of workers."""

    name = "kt-kernel"

    def __init__(self, kt: Any, problem: Problem, threads: int) -> None:
        self.problem = problem
        pool = kt.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map = 1, [0]
        pool.subpool_thread_count = [threads]
        self.workers = kt.CPUInfer(pool)
        self.on_gpu = np.zeros(problem.experts, dtype=np.uint8)
        self.order = np.arange(problem.experts, dtype=np.int64)
        self.kept: list[dict[str, np.ndarray]] = []
        self.layers = [self._layer(kt, layer) for layer in range(problem.layers)]
        # BF16 is the upper half of a float32.
        self.x = (problem.x.view(np.uint32) >> 16).astype(np.uint16)
        self.ids = problem.ids.astype(np.int64)
        self.result = np.zeros(problem.x.shape, dtype=np.uint16)
        self.count = np.array([problem.tokens], dtype=np.int32)

    def _layer(self, kt: Any, layer: int) -> Any:
        problem = self.problem
        config = kt.moe.MOEConfig(problem.experts, TOP, HIDDEN, INTER, self.on_gpu.ctypes.data)
        config.layer_idx, config.pool = layer, self.workers.backend_
        config.m_block, config.group_min_len = _BLOCK_ROWS, _SINGLES
        config.max_len = config.group_max_len = _CHUNK
        config.hidden_type = kt.kvcache.ggml_type.BF16
        kind = getattr(kt.kvcache.ggml_type, problem.format)
        sources = {name: problem.weights(layer, name) for name in NAMES}
        self.kept.append(sources)
        for name, source in sources.items():
            setattr(config, f"{name}_proj", source.ctypes.data)
            setattr(config, f"{name}_type", kind)
        moe = kt.moe.MOE(config)
        self.workers.submit(moe.load_weights_task(self.order.ctypes.data))
        self.workers.sync()
        return moe

    def call(self, layer: int, step: int) -> None:
        """One layer."""
        task = self.layers[layer].forward_task(
            self.count.ctypes.data,
            TOP,
            self.ids[step].ctypes.data,
            self.problem.routing.ctypes.data,
            self.x.ctypes.data,
            self.result.ctypes.data,
            False,
        )
        self.workers.submit(task)
        self.workers.sync()

    def output(self) -> np.ndarray:
        """float32 [tokens, hidden]."""
        return (self.result.astype(np.uint32) << 16).view(np.float32)


def make(problem: Problem, chosen: argparse.Namespace) -> KtKernel:
    """Ready to run."""
    if chosen.plain:
        raise Missing("it has one layout for GGUF blocks")
    kt = extension()
    if not hasattr(kt.kvcache.ggml_type, problem.format):
        raise Missing(f"kt-kernel does not know {problem.format}")
    return KtKernel(kt, problem, chosen.threads)


if __name__ == "__main__":
    sys.exit(serve(make))
