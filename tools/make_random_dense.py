"""Write a random dense model of a published one's shapes and types, as a GGUF file.

    python -m tools.make_random_dense OUT.gguf [--like r1-distill-7b] [--quant Q4_K_M] [--layers N]

For measuring speed against llama.cpp, which reads the same file: every weight has the shape and the
type of the published one, and random blocks (make_random_model.py says which). Tokens beyond
tiny-r1's vocabulary are unused ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from localr1 import registry
from localr1.models.dense_config import ROPE_FREQS, DenseConfig
from localr1.models.gguf import GGUFFile
from localr1.models.quant_rules import Family, type_of
from localr1.models.shapes import weight_shapes
from tools.make_random_model import SEED, Tensor, write_random

_UNUSED = 5  # llama.cpp's type of such a token


def make_random_dense(out: Path, config: DenseConfig, quant: str = "Q4_K_M") -> Path:
    """Write a model of `config` in `quant`, whose rule must give Q4_K, Q5_0, Q6_K or F32."""
    writer = gguf.GGUFWriter(out, config.architecture)
    writer.add_name(f"random {config.architecture} of {config.n_layers} layers")
    for key, value in {**_numbers(config), **_vocabulary(config.vocab_size)}.items():
        whole = type(value) is int  # and then unsigned, as llama.cpp asks for
        kind = gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    return write_random(writer, out, _tensors(config, quant), SEED)


def _tensors(c: DenseConfig, quant: str) -> list[Tensor]:
    family = Family(c.n_layers, c.n_heads // c.n_kv_heads, c.tied)
    return [
        Tensor(name, shape[1:] if shape[0] == 1 else shape, type_of(name, shape, quant, family))
        for name, shape in weight_shapes(c).items()
        if name != ROPE_FREQS
    ]


def _numbers(c: DenseConfig) -> dict[str, Any]:
    numbers = {
        "block_count": c.n_layers,
        "context_length": c.max_context,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": c.rope.theta,
    }
    return {f"{c.architecture}.{key}": value for key, value in numbers.items()}


def _vocabulary(size: int) -> Mapping[str, Any]:
    tiny = GGUFFile.open(registry.resolve("tiny-r1").path).metadata
    values = {key: value for key, value in tiny.items() if key.startswith("tokenizer.")}
    more = size - len(values["tokenizer.ggml.tokens"])
    unused = [f"[unused{i}]" for i in range(more)]
    values["tokenizer.ggml.tokens"] = [*values["tokenizer.ggml.tokens"], *unused]
    values["tokenizer.ggml.token_type"] = [
        *values["tokenizer.ggml.token_type"], *[_UNUSED] * more
    ]  # fmt: skip
    return values


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="a random GGUF of a known dense model's shapes")
    parser.add_argument("out", type=Path, help="the .gguf file to write")
    parser.add_argument("--like", default="r1-distill-7b", help="a dense model of models.toml")
    parser.add_argument("--quant", default="Q4_K_M", help="whose rule gives each weight its type")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    args = parser.parse_args()
    config = DenseConfig.from_hf(registry.entries()[args.like].config)
    if args.layers:
        config = replace(config, n_layers=args.layers)
    out = make_random_dense(args.out, config, args.quant)
    print(f"{out}: {out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
