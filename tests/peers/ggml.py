"""ggml through ctypes: what llama.cpp and ik_llama.cpp have in common.

Both make a graph of one MoE layer, with the weighted sum of its experts, and compute it on the CPU.
Pointers are integers; the few structures passed by value are declared here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.peers.problem import HIDDEN, TOP, Problem

F32, I32 = 0, 26  # ggml's numbers of types
_GRAPH_ROOM = 8 << 20  # bytes for the graph itself
_POINTERS = (
    "ggml_init ggml_new_tensor_1d ggml_new_tensor_2d ggml_new_tensor_3d ggml_new_graph ggml_mul "
    "ggml_mul_mat_id ggml_swiglu_split ggml_view_2d ggml_add ggml_get_data ggml_moe_up_gate "
    "ggml_mul_multi_add ggml_backend_cpu_init ggml_backend_cpu_buffer_from_ptr "
    "ggml_backend_buft_alloc_buffer ggml_backend_buffer_get_base ggml_backend_cpu_reg "
    "ggml_backend_reg_dev_get ggml_backend_reg_get_proc_address"
).split()
_SIZES = ("ggml_nbytes", "ggml_backend_buft_get_alloc_size")


class _InitParams(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Library:
    """The functions of a ggml: pointers come back as integers, and integers go in as 64 bits."""

    def __init__(self, *paths: Path) -> None:
        self._libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]

    def find(self, name: str) -> Any:
        """A function of the first library that has it."""
        for library in self._libraries:
            if hasattr(library, name):
                function = getattr(library, name)
                if name in _POINTERS:
                    function.restype = ctypes.c_void_p
                elif name in _SIZES:
                    function.restype = ctypes.c_size_t
                return function
        raise AttributeError(name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = self.find(name)

        def call(*values: Any) -> Any:
            return function(*(_wide(value) for value in values))

        setattr(self, name, call)
        return call

    def context(self, size: int, *, no_alloc: bool) -> int:
        """A new ggml context with room for `size` bytes."""
        made: int = self.find("ggml_init")(_InitParams(size, None, no_alloc))
        return made

    def array(self, tensor: int, dtype: Any, count: int) -> np.ndarray:
        """The values of a tensor, for reading and writing."""
        size = count * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.ggml_get_data(tensor))
        return np.frombuffer(memory, dtype=dtype)


def _wide(value: Any) -> Any:
    return ctypes.c_int64(value) if isinstance(value, int) else value


class Layers:
    """A graph for each layer of the problem; what a peer adds is its weights and its experts.

    `weights(layer)` returns the tensors gate, up, down; `experts(context, weights, x, ids)` the
    tensor [hidden, 8, tokens] of the experts' outputs; `total(context, experts, routing)` its
    weighted sum.
    """

    def __init__(self, ggml: Library, problem: Problem, threads: int, peer: Any) -> None:
        self.ggml, self.problem = ggml, problem
        self.peer = peer  # owns the weights
        self.backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        self._made = [self._graph(layer) for layer in range(problem.layers)]
        self._last = self._made[0]

    def _graph(self, layer: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The graph of one layer, its expert ids, and its result."""
        ggml, peer, tokens = self.ggml, self.peer, self.problem.tokens
        weights = peer.weights(layer)
        context = ggml.context(_GRAPH_ROOM + tokens * TOP * HIDDEN * 4 * 6, no_alloc=False)
        x = ggml.ggml_new_tensor_3d(context, F32, HIDDEN, 1, tokens)
        ids = ggml.ggml_new_tensor_2d(context, I32, TOP, tokens)
        routing = ggml.ggml_new_tensor_3d(context, F32, 1, TOP, tokens)
        total = peer.total(context, peer.experts(context, weights, x, ids), routing)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, total)
        ggml.array(x, np.float32, tokens * HIDDEN)[:] = self.problem.x.ravel()
        ggml.array(routing, np.float32, tokens * TOP)[:] = self.problem.routing.ravel()
        return (
            graph,
            ggml.array(ids, np.int32, tokens * TOP),
            ggml.array(total, np.float32, tokens * HIDDEN),
        )

    def call(self, layer: int, step: int) -> None:
        """Compute one layer."""
        self._last = graph, ids, _ = self._made[layer]
        ids[:] = self.problem.ids[step].ravel()
        status = self.ggml.ggml_backend_graph_compute(self.backend, graph)
        if status != 0:
            raise RuntimeError(f"ggml could not compute the graph: status {status}")

    def output(self) -> np.ndarray:
        """float32 [tokens, hidden] of the last call."""
        return self._last[2].reshape(-1, HIDDEN)


def sum_of_views(ggml: Library, context: int, experts: int, routing: int, tokens: int) -> int:
    """The weighted sum as llama.cpp makes it: a product, then a chain of additions of views."""
    scaled = ggml.ggml_mul(context, experts, routing)
    row = HIDDEN * 4
    views = [
        ggml.ggml_view_2d(context, scaled, HIDDEN, tokens, row * TOP, row * slot)
        for slot in range(TOP)
    ]
    total = views[0]
    for view in views[1:]:
        total = ggml.ggml_add(context, total, view)
    return total
