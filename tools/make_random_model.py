"""Write a random model of DeepSeek-R1's layer shapes, of about a given size, as a GGUF file.

    python -m tools.make_random_model OUT.gguf --size 8GiB [--experts 256]

For measuring: loading, placement and speed need R1's shapes and types, not its wits. Every byte is
random (nothing compresses, nothing is sparse) but for the blocks' float16 scales: they give weights
the spread of a trained matrix, so that activations neither vanish nor explode. Types are those of a
Q4_K_M file. Vocabulary and template are tiny-r1's. The data is streamed: little memory.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from cpu_experts import FORMATS
from localr1.llm import size_in_bytes
from localr1.models.config import ModelConfig
from localr1.models.gguf import GGUFFile
from localr1.models.shapes import weight_shapes

SEED = 671
_CHUNK = 32 << 20
_ALIGNMENT = 32
_R1: dict[str, Any] = {
    "attention.head_count": 128,
    "attention.head_count_kv": 1,
    "attention.key_length": 576,
    "attention.key_length_mla": 192,
    "attention.kv_lora_rank": 512,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.q_lora_rank": 1536,
    "attention.value_length": 512,
    "attention.value_length_mla": 128,
    "context_length": 163_840,
    "embedding_length": 7168,
    "expert_feed_forward_length": 2048,
    "expert_gating_func": 2,
    "expert_group_count": 8,
    "expert_group_used_count": 4,
    "expert_shared_count": 1,
    "expert_used_count": 8,
    "expert_weights_norm": True,
    "expert_weights_scale": 2.5,
    "feed_forward_length": 18_432,
    "rope.dimension_count": 64,
    "rope.freq_base": 10_000.0,
    "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 4096,
    "rope.scaling.type": "yarn",
    "rope.scaling.yarn_log_multiplier": 0.1,
}


class _Scale(NamedTuple):
    """A float16 of a block: where it lies, and its value for weights of standard deviation 1."""

    offset: int
    value: float


# Spread of a block of random bytes: Q4_K 258 d when dmin = 7.5 d makes the mean 0 (6-bit scales and
# mins, 4-bit values); Q6_K 74 * 18.5 d; Q5_0 9.2 d.
_SCALES = {
    "Q4_K": (_Scale(0, 1 / 258), _Scale(2, 7.5 / 258)),
    "Q6_K": (_Scale(208, 1 / (74 * 18.5)),),
    "Q5_0": (_Scale(0, 1 / 9.2),),
}


class Tensor(NamedTuple):
    """A weight to write."""

    name: str
    shape: tuple[int, ...]
    kind: str  # a key of FORMATS

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * int(FORMATS[self.kind].row_bytes(self.shape[-1]))


def make_random_model(out: Path, size: int, experts: int = 256) -> Path:
    """Write about `size` bytes: as many MoE layers as fit, one at least, then dense ones.

    `experts` (a multiple of 8) of each MoE layer; 256 as R1 has, fewer for small files.
    """
    tiny = GGUFFile.open(Path(str(files("localr1") / "tiny" / "tiny-r1.gguf"))).metadata
    vocabulary = {key: value for key, value in tiny.items() if key.startswith("tokenizer.")}
    shape = {"vocab_size": len(vocabulary["tokenizer.ggml.tokens"]), "expert_count": experts}
    moe, dense = _layers(size, shape)
    numbers = _numbers(shape, moe, dense)
    writer = gguf.GGUFWriter(out, "deepseek2")
    writer.add_name(f"random R1, {dense} dense and {moe} MoE layers")
    for key, value in {**numbers, **vocabulary}.items():
        if key == "general.architecture":
            continue  # the writer has put it there itself
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    return write_random(writer, out, list(_tensors(numbers)), SEED)


def write_random(writer: gguf.GGUFWriter, out: Path, tensors: list[Tensor], seed: int) -> Path:
    """Write the file that `writer` has the metadata of, with random weights."""
    for tensor in tensors:
        qtype = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, qtype
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    rng = np.random.default_rng(seed)
    with out.open("ab") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for chunk in _random_bytes(tensor, rng):
                file.write(chunk)
        file.write(bytes(-file.tell() % _ALIGNMENT))
    return out


def _layers(size: int, shape: dict[str, int]) -> tuple[int, int]:
    """(MoE layers, dense layers) that come nearest to `size` from below; one of each at least."""

    def total(moe: int, dense: int) -> int:
        return sum(tensor.nbytes for tensor in _tensors(_numbers(shape, moe, dense)))

    moe = dense = 1
    while total(moe + 1, dense) <= size:
        moe += 1
    while total(moe, dense + 1) <= size:
        dense += 1
    return moe, dense


def _numbers(shape: dict[str, int], moe: int, dense: int) -> dict[str, Any]:
    """The metadata that `ModelConfig` is read from."""
    values = {**_R1, **shape, "block_count": moe + dense, "leading_dense_block_count": dense}
    numbers = {f"deepseek2.{key}": value for key, value in values.items()}
    return {"general.architecture": "deepseek2", **numbers}


def _tensors(numbers: dict[str, Any]) -> Iterator[Tensor]:
    config = ModelConfig.from_gguf(numbers, {})
    for name, shape in weight_shapes(config).items():
        if name.endswith("attn_kv_b.weight"):
            continue  # the newer layout: attn_k_b and attn_v_b
        shape = shape[1:] if shape[0] == 1 else shape
        yield Tensor(name, shape, _kind(name, shape, config))


def _kind(name: str, shape: tuple[int, ...], config: ModelConfig) -> str:
    """The type in a Q4_K_M file; some layers have ffn_down_exps in Q6_K, here every other."""
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    if shape[-1] % 256:
        return "Q5_0"
    if "ffn_down_exps" in name:
        layer = int(name.split(".")[1])
        return "Q4_K" if (layer - config.n_dense_layers) % 2 else "Q6_K"
    return "Q6_K" if name == "output.weight" or "ffn_down" in name else "Q4_K"


def _random_bytes(tensor: Tensor, rng: np.random.Generator) -> Iterator[memoryview]:
    """The tensor's bytes in the file, in chunks."""
    spread = tensor.shape[-1] ** -0.5
    if tensor.kind == "F32":
        yield _floats(tensor, spread, rng).data
        return
    block = FORMATS[tensor.kind].block_bytes
    left = tensor.nbytes // block
    while left:
        n = min(left, _CHUNK // block)
        left -= n
        blocks = np.frombuffer(bytearray(rng.bytes(n * block)), np.uint8).reshape(n, block)
        vary = rng.uniform(0.5, 1.4, n)  # mean square 1, near enough
        for offset, value in _SCALES[tensor.kind]:
            scales = (vary * (value * spread)).astype("<f2")
            blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n, 2)
        yield blocks.data


def _floats(tensor: Tensor, spread: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(tensor.shape, np.float32)
    if tensor.name.endswith("bias"):
        return 0.1 * noise
    return 1 + 0.1 * noise if len(tensor.shape) == 1 else noise * np.float32(spread)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="a random GGUF model of R1's layer shapes")
    parser.add_argument("out", type=Path, help="the .gguf file to write")
    parser.add_argument("--size", default="8GiB", help="about how big; 8GiB, 500MB or bytes")
    parser.add_argument("--experts", type=int, default=256, help="per layer, a multiple of 8")
    args = parser.parse_args()
    size = size_in_bytes(args.size)
    if size is None or args.experts < 16 or args.experts % 8:
        parser.error("--experts takes a multiple of 8, 16 or more")
    out = make_random_model(args.out, size, args.experts)
    print(f"{out}: {out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
