"""Quantised expert kernels on the CPU, from the file's own blocks. numpy and numba only.

    w = QuantTensor("Q4_K", (rows, cols), (bytes_of_the_file,))
    y = matmul(x, w)                                  # x float32 [T, cols] -> [T, rows]
    y = moe_forward(x, ids, weights, ExpertBank(gate, up, down))

Weights are never repacked and never expanded to floats in memory. Nothing of the packages above
this one is imported here.
"""

from __future__ import annotations

from cpu_experts.activations import Activations
from cpu_experts.bank import ExpertBank
from cpu_experts.bench import bench_kernels
from cpu_experts.cpu import UnsupportedISA, tier
from cpu_experts.formats import FORMATS, QuantFormat, UnsupportedFormat, format_of
from cpu_experts.matmul import matmul, matmul_stack, matmul_stack_t
from cpu_experts.moe import moe_forward
from cpu_experts.pool import get_threads, set_threads
from cpu_experts.tensor import BadTensor, QuantTensor
from cpu_experts.warmup import warmup

__all__ = [
    "FORMATS",
    "Activations",
    "BadTensor",
    "ExpertBank",
    "QuantFormat",
    "QuantTensor",
    "UnsupportedFormat",
    "UnsupportedISA",
    "bench_kernels",
    "format_of",
    "get_threads",
    "matmul",
    "matmul_stack",
    "matmul_stack_t",
    "moe_forward",
    "set_threads",
    "tier",
    "warmup",
]
