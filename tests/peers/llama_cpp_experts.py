"""llama.cpp's experts: the ggml inside llama-cpp-python, repacked weights where it has them.

    python -m tests.peers.llama_cpp_experts --format Q4_K --tokens 1 --rounds 5 [--plain]

Which buffer type takes a weight is asked as llama.cpp's loader asks: the first of the CPU's extra
buffer types (AMX, repacking) that supports mul_mat_id with it, or the file's own layout where none
does. `--plain` asks for none of them.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
from pathlib import Path

import numpy as np

from cpu_experts import FORMATS
from tests.peers import problem as problems
from tests.peers.ggml import F32, I32, Layers, Library, sum_of_views
from tests.peers.problem import TOP, Problem
from tests.peers.worker import Missing, serve

_BUFFER = 8  # where a ggml_tensor keeps its buffer


def library() -> Library:
    """The ggml of llama-cpp-python."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise Missing("llama-cpp-python is not installed")
    folder = Path(found.origin).parent / "lib"
    return Library(*(folder / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu", "ggml")))


class LlamaCpp:
    """Weights and graph as llama.cpp's build_moe_ffn makes them."""

    def __init__(self, ggml: Library, problem: Problem, repacked: bool) -> None:
        self.ggml, self.problem = ggml, problem
        self.kept: list[np.ndarray] = []
        self.device = ggml.ggml_backend_reg_dev_get(ggml.ggml_backend_cpu_reg(), 0)
        self.buffer_type = self._extra_type() if repacked else 0

    def _extra_type(self) -> int:
        """The first extra buffer type of the CPU that takes the experts; 0 if none does."""
        ggml = self.ggml
        address = ggml.ggml_backend_reg_get_proc_address(
            ggml.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
        )
        ask = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        types = ask(self.device)
        for found in iter(iter(types).__next__, None):  # the list ends with a null pointer
            if self._takes(found):
                return int(found)
        return 0

    def _takes(self, buffer_type: int) -> bool:
        """Whether mul_mat_id works on gate and down in such a buffer."""
        ggml, kind = self.ggml, FORMATS[self.problem.format].ggml_type
        context = ggml.context(1 << 20, no_alloc=True)
        buffer = ggml.ggml_backend_buft_alloc_buffer(buffer_type, 0)
        answers = []
        for name in ("gate", "down"):
            experts, rows, cols = self.problem.shape(name)
            weight = ggml.ggml_new_tensor_3d(context, kind, cols, rows, experts)
            ctypes.c_void_p.from_address(weight + _BUFFER).value = buffer
            x = ggml.ggml_new_tensor_3d(context, F32, cols, TOP, 512)
            ids = ggml.ggml_new_tensor_2d(context, I32, TOP, 512)
            product = ggml.ggml_mul_mat_id(context, weight, x, ids)
            answers.append(ggml.ggml_backend_dev_supports_op(self.device, product) & 1)
        ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(context)
        return all(answers)

    def weights(self, layer: int) -> list[int]:
        """gate, up and down of a layer: in place, or copied by the repacking buffer type."""
        ggml, problem = self.ggml, self.problem
        context = ggml.context(1 << 16, no_alloc=True)
        tensors = []
        for name in problems.NAMES:
            experts, rows, cols = problem.shape(name)
            kind = FORMATS[problem.format].ggml_type
            tensor = ggml.ggml_new_tensor_3d(context, kind, cols, rows, experts)
            source = problem.weights(layer, name)
            if self.buffer_type:
                self._repack(tensor, source)
            else:
                self.kept.append(source)
                buffer = ggml.ggml_backend_cpu_buffer_from_ptr(source.ctypes.data, source.nbytes)
                ggml.ggml_backend_tensor_alloc(buffer, tensor, source.ctypes.data)
            tensors.append(tensor)
        return tensors

    def _repack(self, tensor: int, source: np.ndarray) -> None:
        ggml = self.ggml
        size = ggml.ggml_backend_buft_get_alloc_size(self.buffer_type, tensor)
        buffer = ggml.ggml_backend_buft_alloc_buffer(self.buffer_type, size)
        base = ggml.ggml_backend_buffer_get_base(buffer)
        problems.ask_for_huge_pages(base, size)
        ggml.ggml_backend_tensor_alloc(buffer, tensor, base)
        ggml.ggml_backend_tensor_set(tensor, source.ctypes.data, 0, source.nbytes)

    def experts(self, context: int, weights: list[int], x: int, ids: int) -> int:
        """gate, up -> SwiGLU -> down."""
        ggml = self.ggml
        gate, up = (ggml.ggml_mul_mat_id(context, w, x, ids) for w in weights[:2])
        return ggml.ggml_mul_mat_id(
            context, weights[2], ggml.ggml_swiglu_split(context, gate, up), ids
        )

    def total(self, context: int, experts: int, routing: int) -> int:
        """The weighted sum."""
        return sum_of_views(self.ggml, context, experts, routing, self.problem.tokens)


class Runner(Layers):
    """Named for the rows."""

    name = "llama.cpp"


def make(problem: Problem, chosen: argparse.Namespace) -> Runner:
    """Ready to run."""
    ggml = library()
    if FORMATS[problem.format].ggml_type is None:
        raise Missing(f"llama.cpp does not know {problem.format}")
    return Runner(ggml, problem, chosen.threads, LlamaCpp(ggml, problem, repacked=not chosen.plain))


if __name__ == "__main__":
    sys.exit(serve(make))
