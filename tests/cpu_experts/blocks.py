"""Weights for the tests: random and adversarial blocks of every format, and the two oracles.

Random bytes make NaN scales, so scales are written over them. `ideal` is gguf-py's dequantisation;
`quantised` is what an activation becomes before it meets quantised weights.
"""

from __future__ import annotations

import gguf
import numpy as np

from cpu_experts import FORMATS, QuantTensor

# Where a block keeps its float16 scales.
SCALES = {
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}
FLOATS = ("F32", "F16", "BF16", "FP8_E4M3")
QUANTISED = tuple(name for name in FORMATS if name not in FLOATS)


def float_bytes(name: str, values: np.ndarray) -> np.ndarray:
    """float32 values as the bytes of a float format (BF16 cuts, FP8 keeps random bytes)."""
    if name == "F32":
        return values.view(np.uint8)
    if name == "F16":
        return values.astype(np.float16).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def random_bytes(
    name: str, rows: int, cols: int, rng: np.random.Generator, scale: float = 0.01
) -> np.ndarray:
    """uint8 [rows, row bytes]: every bit pattern but in the scales, which are normal numbers."""
    weights = FORMATS[name]
    if name == "FP8_E4M3":
        raw = rng.integers(0, 256, (rows, cols), dtype=np.uint8)
        return np.where(raw & 0x7F == 0x7F, 0, raw).astype(np.uint8)
    if name in FLOATS:
        return float_bytes(name, rng.normal(0, 1, (rows, cols)).astype(np.float32))
    raw = rng.integers(0, 256, (rows, weights.row_bytes(cols)), dtype=np.uint8)
    blocks = raw.reshape(-1, weights.block_bytes)
    for offset in SCALES.get(name, (0,)):
        halves = rng.normal(0, scale, (len(blocks), 1)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8)
    return raw


def random_tensor(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, scale: float = 0.01
) -> QuantTensor:
    """A tensor of `shape` in one part, at an odd address."""
    rows = int(np.prod(shape[:-1]))
    raw = random_bytes(name, rows, shape[-1], rng, scale)
    memory = np.zeros(raw.size + 1, dtype=np.uint8)
    memory[1:] = raw.reshape(-1)
    tiles = (rows // shape[-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scales = (rng.normal(0, 1, tiles).astype(np.float32),) if name == "FP8_E4M3" else ()
    return QuantTensor(name, shape, (memory[1:],), scales)


def ideal(tensor: QuantTensor) -> np.ndarray:
    """The weights by gguf-py (FP8: by torch), float32 of the tensor's shape."""
    raw = np.concatenate(tensor.parts).reshape(-1, tensor.row_bytes)
    if tensor.format.name == "FP8_E4M3":
        import torch

        values = torch.from_numpy(raw.copy()).view(torch.float8_e4m3fn).float().numpy()
        scales = np.concatenate([s.reshape(-1, *s.shape[-2:]) for s in tensor.scales])
        wide = scales.repeat(128, axis=1).repeat(128, axis=2)[:, : tensor.rows, : tensor.cols]
        return values.reshape(tensor.shape) * wide.reshape(tensor.shape)
    kind = gguf.GGMLQuantizationType[tensor.format.name]
    return gguf.quants.dequantize(raw, kind).reshape(tensor.shape)


def quantised(x: np.ndarray, name: str) -> np.ndarray:
    """x as float64 after the int8 rounding that weights of a format ask for."""
    if name in FLOATS:
        return x.astype(np.float64)
    block = FORMATS[name].block_values
    parts = x.reshape(-1, block)
    scale = np.abs(parts).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 1e-37)
    return (np.rint(parts * inverse).astype(np.float64) * scale).reshape(x.shape)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """The L2 norm of the difference, relative to the wanted one's."""
    return float(np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30))
