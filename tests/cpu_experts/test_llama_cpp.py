"""Our int8 products are no further from the exact ones than llama.cpp's `vec_dot`, on real blocks.

llama.cpp quantises the weights (`ggml_quantize_chunk`), so every format is met as its files have
it; both sides then round the same float32 activations in their own way.
"""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from cpu_experts import QuantTensor, matmul

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

ROWS, COLS = 512, 1024
FORMATS = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
)  # fmt: skip
NOISE = 1.02  # the same rounding, of other halves and sums: measured within 1 %


class Traits(ctypes.Structure):
    """ggml's `ggml_type_traits_cpu`."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


FROM_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
VEC_DOT = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
)  # fmt: skip


def library(name: str) -> ctypes.CDLL:
    [path] = (Path(llama_cpp.__file__).parent / "lib").glob(f"lib{name}.so")
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def ggml() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    base, cpu = library("ggml-base"), library("ggml-cpu")
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    base.ggml_row_size.restype = ctypes.c_size_t
    base.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    cpu.ggml_cpu_init()
    return base, cpu


def quantised(base: ctypes.CDLL, kind: int, weights: np.ndarray) -> np.ndarray:
    out = np.empty((ROWS, base.ggml_row_size(kind, COLS)), np.uint8)
    where = (weights.ctypes.data, out.ctypes.data)
    base.ggml_quantize_chunk(kind, *where, 0, ROWS, COLS, None)
    return out


def their_product(ggml, kind: int, blocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    base, cpu = ggml
    traits = cpu.ggml_get_type_traits_cpu(kind).contents
    row = np.empty(base.ggml_row_size(traits.vec_dot_type, COLS) + 64, np.uint8)
    to_row = cpu.ggml_get_type_traits_cpu(traits.vec_dot_type).contents.from_float
    FROM_FLOAT(to_row)(x.ctypes.data, row.ctypes.data, COLS)
    out, dot = np.empty(ROWS, np.float32), VEC_DOT(traits.vec_dot)
    for r in range(ROWS):
        dot(COLS, out[r:].ctypes.data, 0, blocks[r].ctypes.data, 0, row.ctypes.data, 0, 1)
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_no_further_than_vec_dot(name: str, ggml):
    kind = int(gguf.GGMLQuantizationType[name])
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(ROWS, COLS)).astype(np.float32)
    blocks = quantised(ggml[0], kind, weights)
    tensor = QuantTensor(name, (ROWS, COLS), (blocks.reshape(-1),))
    exact_weights = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]).astype(np.float64)
    own = theirs = 0.0
    for _ in range(16):
        x = rng.normal(size=COLS).astype(np.float32)
        exact = exact_weights @ x
        own += float(((matmul(x[None], tensor)[0] - exact) ** 2).sum())
        theirs += float(((their_product(ggml, kind, blocks, x) - exact) ** 2).sum())
    print(f"{name}: error {own / theirs:.3f} of llama.cpp's")
    assert own <= NOISE**2 * theirs
