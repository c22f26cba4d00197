"""What a model weighs: R1 as published, every rule against llama.cpp's quantiser, files exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localr1 import registry
from localr1.errors import Unsupported
from localr1.models import cache_layout, inventory, quant_rules
from localr1.models.architecture import config_from_hf
from localr1.models.cache_layout import CACHES
from localr1.models.config import ModelConfig
from localr1.models.dense_config import ROPE_FREQS, DenseConfig
from localr1.models.gguf import GGUFFile
from localr1.models.kv_cache import KVCache
from localr1.models.quant_rules import Family
from localr1.models.rope_config import RopeConfig
from localr1.models.shapes import weight_shapes
from localr1.models.source import open_source, read_config
from offload.placement import Kind
from tests import toy
from tests.oracles import quantize

GIB = 1 << 30
PUBLISHED = 404_430_187_616  # unsloth/DeepSeek-R1-GGUF, Q4_K_M, all parts


def of(model: str, quant: str) -> inventory.Inventory:
    entry = registry.entries()[model]
    config = config_from_hf(entry.config)
    return inventory.from_rule(config, quant, entry.quants[quant].nbytes)


def bytes_of(stock: inventory.Inventory, kind: Kind) -> int:
    return sum(weight.nbytes for weight in stock.weights if weight.kind == kind)


def test_r1_weighs_what_its_file_weighs() -> None:
    stock = of("deepseek-r1", "Q4_K_M")
    assert abs(stock.nbytes / PUBLISHED - 1) < 0.001
    assert abs(bytes_of(stock, Kind.ROUTED) / GIB - 366.9) < 0.05
    values = {kind: sum(w.values for w in stock.weights if w.kind == kind) for kind in Kind}
    assert round(values[Kind.ROUTED] / 1e9, 2) == 653.91
    assert round(values[Kind.ATTENTION] / 1e9, 2) == 11.41
    assert round(values[Kind.SHARED] / 1e9, 2) == 2.55
    assert round(values[Kind.DENSE] / 1e9, 2) == 1.19
    assert round(values[Kind.HEAD] / 1e9, 2) == 0.93
    read = sum(w.values * w.read_fraction for w in stock.weights if w.kind == Kind.ROUTED)
    assert round(read / 1e9, 2) == 20.43


def test_rules_agree_with_the_sizes_of_published_files() -> None:
    """Of every known file whose quant has a rule; the hub shows three digits of its size."""
    seen = 0
    for entry in registry.entries().values():
        for name, known in entry.quants.items():
            if name in quant_rules.DEFAULTS and known.nbytes:
                error = of(entry.name, name).nbytes / known.nbytes - 1
                assert abs(error) < 0.012, (entry.name, name)  # 1.1 GB with a 10 MB vocabulary
                seen += 1
    assert seen > 40


def test_mixes_take_the_size_of_their_file() -> None:
    stock = of("deepseek-r1", "UD-Q2_K_XL")
    assert stock.approximate
    assert abs(stock.nbytes / 227e9 - 1) < 1e-6
    config = config_from_hf(registry.entries()["deepseek-r1"].config)
    with pytest.raises(Unsupported, match="UD-Q9"):
        inventory.from_rule(config, "UD-Q9", None)


def test_caches() -> None:
    r1 = of("deepseek-r1", "Q4_K_M").demands
    assert r1.n_layers * r1.cache_gpu == 70_272
    assert r1.n_layers * r1.cache_gpu_8bit == 61 * (576 + 2 * 4)
    assert r1.n_layers * r1.cache_ram == 140_544
    llama = of("r1-distill-8b", "Q4_K_M").demands
    assert llama.n_layers * llama.cache_gpu == 2 * 32 * 8 * 128 * 2
    assert llama.n_layers * llama.cache_gpu_8bit == 2 * 32 * 8 * (128 + 4)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["deepseek-r1", "r1-distill-7b"])
def test_a_cache_takes_what_the_planner_counts(name: str, cache: str) -> None:
    config = config_from_hf(registry.entries()[name].config)
    made = KVCache(config.n_layers, 10, cache_layout.on_gpu(config, cache))
    counted = of(name, "Q4_K_M").with_cache(cache).demands
    assert made.nbytes == 10 * config.n_layers * counted.cache_gpu
    on_cpu = KVCache(config.n_layers, 10, cache_layout.on_cpu(config))
    assert on_cpu.nbytes == 10 * config.n_layers * counted.cache_ram


def test_an_open_file_is_counted_to_the_byte() -> None:
    source = open_source(toy.TINY_R1)
    stock = inventory.from_source(source, read_config(source))
    assert stock.nbytes == toy.TINY_R1.stat().st_size
    unused = {w.name for w in stock.weights if w.kind == Kind.UNUSED}
    assert "header" in unused and all(w == "header" or w.startswith("blk.4.") for w in unused)
    assert {w.name for w in stock.weights} - {"header"} == set(source.names())


def test_a_folder_is_counted_with_its_scales(tmp_path: Path) -> None:
    folder = toy.hf_folder(tmp_path / "hf", toy.config())
    source = open_source(toy.fp8_folder(folder, tmp_path / "fp8"))
    stock = inventory.from_source(source, read_config(source))
    assert stock.nbytes == source.nbytes
    assert bytes_of(stock, Kind.ROUTED) > 0


def moe(layers: int, layout: str, q_lora: int) -> tuple[dict[str, Any], dict[str, Any], Family]:
    """(metadata, shapes) of a small deepseek2 model whose rows fill whole blocks, but for k_b's."""
    hidden, inter, experts, rank, nope, rope, v, heads = 256, 256, 16, 256, 128, 32, 64, 4
    numbers = {
        "block_count": layers, "context_length": 512, "embedding_length": hidden,
        "feed_forward_length": 512, "leading_dense_block_count": 1, "vocab_size": 768,
        "attention.head_count": heads, "attention.kv_lora_rank": rank,
        "attention.layer_norm_rms_epsilon": 1e-6, "expert_count": experts, "expert_used_count": 2,
        "expert_shared_count": 1, "expert_feed_forward_length": inter, "expert_weights_scale": 1.0,
        "rope.dimension_count": rope, "expert_gating_func": 2,
    }  # fmt: skip
    if layout == "kv_b":
        lengths = {"attention.head_count_kv": heads, "attention.key_length": nope + rope}
        numbers |= {**lengths, "attention.value_length": v}
    else:
        numbers |= {
            "attention.head_count_kv": 1, "attention.key_length": rank + rope,
            "attention.value_length": rank, "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": v,
        }  # fmt: skip
    if q_lora:
        numbers["attention.q_lora_rank"] = q_lora
    values = {
        "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": layers,
        "hidden_size": hidden, "vocab_size": 768, "num_attention_heads": heads,
        "q_lora_rank": q_lora or None, "kv_lora_rank": rank, "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope, "v_head_dim": v, "first_k_dense_replace": 1,
        "intermediate_size": 512, "moe_intermediate_size": inter, "n_routed_experts": experts,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = config_from_hf(values)
    left_out = ("attn_k_b.weight", "attn_v_b.weight") if layout == "kv_b" else ("attn_kv_b.weight",)
    assert isinstance(config, ModelConfig)
    shapes = weight_shapes(config)
    kept = {name: shape for name, shape in shapes.items() if not name.endswith(left_out)}
    return {f"deepseek2.{k}": x for k, x in numbers.items()}, kept, Family(layers)


def dense(
    arch: str, layers: int, heads: int, keys: int, tied: bool = False
) -> tuple[dict[str, Any], dict[str, Any], Family]:
    rope = RopeConfig(10000.0, 256 // heads)
    sizes = (layers, 256, 768, heads, keys, 256 // heads, 512)
    config = DenseConfig(arch, *sizes, 1e-6, 512, tied, rope)
    numbers: dict[str, Any] = {
        "block_count": layers, "context_length": 512, "embedding_length": 256,
        "feed_forward_length": 512, "attention.head_count": heads, "vocab_size": 768,
        "attention.head_count_kv": keys, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": 256 // heads,
    }  # fmt: skip
    if arch == "qwen3":
        numbers |= {"attention.key_length": 256 // heads, "attention.value_length": 256 // heads}
    metadata = {f"{arch}.{key}": value for key, value in numbers.items()}
    shapes = weight_shapes(config)
    shapes.pop(ROPE_FREQS, None)
    return metadata, shapes, Family(layers, heads // keys, tied)


MODELS = {
    "R1's newer layout": lambda: moe(17, "k_b+v_b", 256),
    "R1's older layout": lambda: moe(17, "kv_b", 256),
    "V2-Lite": lambda: moe(27, "kv_b", 0),
    "llama": lambda: dense("llama", 18, 8, 2),
    "llama without groups": lambda: dense("llama", 9, 4, 4),
    "llama 70B": lambda: dense("llama", 80, 8, 1),
    "qwen2": lambda: dense("qwen2", 28, 8, 4),
    "qwen2 with one embedding": lambda: dense("qwen2", 9, 8, 2, tied=True),
    "qwen3": lambda: dense("qwen3", 9, 8, 2),
}
QUICK = {("R1's newer layout", "Q4_K_M"), ("llama", "Q2_K"), ("qwen2", "Q3_K_M")}


def write(path: Path, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A random GGUF with tiny-r1's vocabulary."""
    writer = gguf.GGUFWriter(path, next(iter(metadata)).partition(".")[0])
    tiny = GGUFFile.open(toy.TINY_R1).metadata
    vocabulary = {key: value for key, value in tiny.items() if key.startswith("tokenizer.")}
    for key, value in {**metadata, **vocabulary}.items():
        kind = gguf.GGUFValueType.get_type(value)
        whole = type(value) is int
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if whole else kind)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        shape = shape[1:] if shape[0] == 1 else shape
        writer.add_tensor(name, rng.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Every model and every quant several times; all pairs take seven minutes.
PAIRS = [
    (model, quant)
    for row, model in enumerate(MODELS)
    for column, quant in enumerate(quant_rules.DEFAULTS)
    if quant != "F32" and ((model, quant) in QUICK or (row + column) % 6 == 0)
]


@pytest.mark.parametrize(
    ("model", "quant"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS],
)
def test_every_weight_gets_the_type_that_llama_cpp_gives_it(
    model: str, quant: str, tmp_path: Path
) -> None:
    metadata, shapes, family = MODELS[model]()
    source = write(tmp_path / "f32.gguf", metadata, shapes)
    made = gguf.GGUFReader(quantize(source, tmp_path / "made.gguf", quant))
    theirs = {tensor.name: tensor.tensor_type.name for tensor in made.tensors}
    ours = {name: quant_rules.type_of(name, shapes[name], quant, family) for name in theirs}
    assert ours == theirs
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in made.tensors}
    assert {name: quant_rules.nbytes_of(ours[name], shapes[name]) for name in ours} == sizes


def test_block_sizes_are_ggmls() -> None:
    for name, (values, size) in quant_rules.BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (values, size)


def test_rows_that_fill_no_block() -> None:
    family = Family(61)
    shape = (128, 512, 128)
    kinds = {quant: quant_rules.type_of("blk.9.attn_k_b.weight", shape, quant, family)
             for quant in ("Q2_K", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "Q8_0")}  # fmt: skip
    assert kinds == {
        "Q2_K": "Q4_0", "Q4_K_M": "Q5_0", "Q5_K_M": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
        "Q8_0": "Q8_0",
    }  # fmt: skip
    assert quant_rules.type_of("blk.9.attn_k.weight", (64, 40), "Q8_0", family) == "F16"
    assert replace(family, n_layers=80, n_gqa=8).is_70b
