"""DenseConfig of published models, from either file, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localr1 import registry
from localr1.errors import BadFile, LocalR1Error, Unsupported
from localr1.models.architecture import config_from_gguf, config_from_hf
from localr1.models.dense_config import DenseConfig
from localr1.models.gguf import GGUFFile
from localr1.models.shapes import check_shapes
from localr1.models.source import open_source, read_config
from tests import toy_dense

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
GGUF = {
    "general.architecture": "llama", "llama.block_count": 30, "llama.context_length": 16384,
    "llama.embedding_length": 4096, "llama.feed_forward_length": 11008,
    "llama.attention.head_count": 32, "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.vocab_size": 32256, "llama.rope.freq_base": 100000.0,
}  # fmt: skip
ROPES = {"llama3": ("llama", toy_dense.LLAMA3), "linear": ("llama", toy_dense.LINEAR),
         "yarn": ("qwen3", toy_dense.YARN), "plain": ("qwen2", None)}  # fmt: skip


def gguf_with(**keys: Any) -> dict[str, Any]:
    return GGUF | {f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}


@pytest.mark.parametrize("rope", ROPES)
def test_both_files_of_a_model_say_the_same(rope: str, tmp_path: Path) -> None:
    architecture, scaling = ROPES[rope]
    config = toy_dense.config(architecture, scaling, tie_word_embeddings=True)
    folder = toy_dense.hf_folder(tmp_path / "hf", config)
    from_hf = read_config(open_source(folder))
    source = open_source(toy_dense.gguf_file(folder, tmp_path / "toy.gguf"))
    from_gguf = read_config(source)
    assert isinstance(from_hf, DenseConfig) and isinstance(from_gguf, DenseConfig)
    for name in DenseConfig.__slots__:
        if name not in ("rope", "rms_norm_eps"):
            assert getattr(from_hf, name) == getattr(from_gguf, name), name
    assert math.isclose(from_hf.rms_norm_eps, from_gguf.rms_norm_eps, rel_tol=1e-6)  # float32
    np.testing.assert_allclose(from_hf.rope.divisors, from_gguf.rope.divisors, rtol=1e-6)
    assert not from_hf.rope.interleaved
    assert from_gguf.rope.interleaved == (architecture == "llama")
    assert check_shapes(from_gguf, source) == {"F32"}


def test_every_dense_model_of_the_registry_is_read() -> None:
    dense = [e for e in registry.entries().values() if "n_routed_experts" not in e.config]
    configs = [config_from_hf(entry.config) for entry in dense if entry.config]
    assert len(configs) == 7
    assert all(isinstance(config, DenseConfig) for config in configs)


def test_llama_3s_frequencies() -> None:
    """The published shape: pairs kept, pairs divided by 8, and a ramp between the two."""
    divisors = DenseConfig.from_hf(LLAMA | {"rope_scaling": LLAMA3}).rope.divisors
    assert len(divisors) == 64
    assert divisors[:29] == (1.0,) * 29 and divisors[-29:] == (8.0,) * 29
    assert list(divisors) == sorted(divisors)


def test_deepseek_coders_scaling_is_linear() -> None:
    metadata = gguf_with(rope__scaling__type="linear", rope__scaling__factor=4.0)
    config = config_from_gguf(metadata, {})
    assert isinstance(config, DenseConfig)
    assert config.rope.divisors == (4.0,) * 64 and config.n_kv_heads == 32


def test_a_head_may_be_wider_than_its_share() -> None:
    metadata = gguf_with(attention__key_length=160, attention__value_length=160)
    config = config_from_gguf(metadata, {})
    assert isinstance(config, DenseConfig) and config.head_dim == config.rope.dim == 160


def test_deepseeks_own_factor_undoes_yarns_temperature() -> None:
    """R1-0528-Qwen3-8B: `attn_factor` in its config.json, and in the GGUF files made of it."""
    own = 0.8782488562869419
    values = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "rope_scaling": YARN}
    assert math.isclose(DenseConfig.from_hf(values).rope.attention_factor, 1 / own, rel_tol=1e-6)
    values["rope_scaling"] = YARN | {"attn_factor": own}
    assert math.isclose(DenseConfig.from_hf(values).rope.attention_factor, 1.0, rel_tol=1e-6)
    metadata = gguf_with(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__attn_factor=own,
        rope__scaling__original_context_length=4096,
    )  # fmt: skip
    rope = config_from_gguf(metadata, {}).rope
    assert math.isclose(rope.attention_factor, 1.0, rel_tol=1e-6) and rope.original_context == 4096


REFUSED = {
    "biases": {"attention_bias": True},
    "biases of the FFN": {"mlp_bias": True},
    "activation": {"hidden_act": "gelu"},
    "sliding window": {"use_sliding_window": True},
    "kinds of layers": {"layer_types": ["full_attention", "sliding_attention"]},
    "dynamic rope": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "long rope": {"rope_scaling": {"type": "longrope", "factor": 2.0}},
    "several ropes": {"rope_scaling": {"type": "mrope", "factor": 1.0}},
    "YaRN with mscale": {"rope_scaling": YARN | {"mscale": 1.0}},
    "half rope": {"partial_rotary_factor": 0.5},
    "another architecture": {"architectures": ["MixtralForCausalLM"]},
    "no architecture": {"architectures": [{}]},
}
WRONG = {
    "no layers": {"num_hidden_layers": 0},
    "absurd layers": {"num_hidden_layers": 1 << 30},
    "no heads": {"num_attention_heads": 0},
    "negative heads": {"num_attention_heads": -32},
    "groups": {"num_key_value_heads": 7},
    "no key heads": {"num_key_value_heads": 0},
    "absurd vocabulary": {"vocab_size": 1 << 40},
    "absurd head": {"head_dim": 1 << 40},
    "odd head": {"head_dim": 127},
    "text for a number": {"hidden_size": "4096"},
    "true for a number": {"num_hidden_layers": True},
    "number for true": {"tie_word_embeddings": 1},
    "zero epsilon": {"rms_norm_eps": 0},
    "rope without a base": {"rope_theta": 1.0},
    "rope is a list": {"rope_scaling": [1]},
    "no factor": {"rope_scaling": {"type": "linear"}},
    "negative factor": {"rope_scaling": {"type": "linear", "factor": -4.0}},
    "factors out of order": {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
    "shrinking": {"rope_scaling": LLAMA3 | {"factor": 0.5}},
    "not finite": {"rope_scaling": {"type": "linear", "factor": float("inf")}},
    "negative attention factor": {"rope_scaling": YARN | {"attention_factor": -1.0}},
    "YaRN from nothing": {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
}


@pytest.mark.parametrize("what", REFUSED)
def test_unsupported_configurations_are_refused(what: str) -> None:
    with pytest.raises(Unsupported) as error:
        config_from_hf(LLAMA | REFUSED[what])
    assert error.value.hint and "\n" not in str(error.value)


@pytest.mark.parametrize("what", WRONG)
def test_impossible_configurations_are_refused(what: str) -> None:
    with pytest.raises(BadFile) as error:
        config_from_hf(LLAMA | WRONG[what])
    assert error.value.hint and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"expert_count": 8},
        {"attention__sliding_window": 4096},
        {"attention__value_length": 64},
        {"attention__head_count": [32] * 30},
        {"attention__head_count": 0},
        {"attention__head_count_kv": 33},
        {"attention__key_length": 1 << 31},
        {"rope__dimension_count": 64},
        {"rope__dimension_count": 0},
        {"rope__freq_base": float("nan")},
        {"rope__scaling__type": "longrope"},
        {"rope__scaling__type": "yarn", "rope__scaling__factor": float("inf")},
        {"rope__scaling__factor": -1.0},
        {"block_count": 1 << 31},
    ],
)
def test_gguf_with_damaged_keys(change: dict[str, Any]) -> None:
    with pytest.raises(LocalR1Error) as error:
        config_from_gguf(gguf_with(**change), {})
    assert error.value.hint


@pytest.mark.parametrize("freqs", [(1.0,) * 63, (0.0,) * 64, (float("nan"),) * 64, (-1.0,) * 64])
def test_damaged_frequencies_are_refused(freqs: tuple[float, ...]) -> None:
    with pytest.raises(BadFile):
        config_from_gguf(GGUF, {}, freqs)
    assert config_from_gguf(GGUF, {}, (2.0,) * 64).rope.divisors == (2.0,) * 64


def test_every_required_key_is_named_when_it_is_missing() -> None:
    for key in ("block_count", "attention.head_count", "feed_forward_length", "context_length"):
        partial = {k: v for k, v in GGUF.items() if k != f"llama.{key}"}
        with pytest.raises(BadFile, match=key.replace(".", r"\.")):
            config_from_gguf(partial, {})


def test_a_weight_that_the_model_has_no_place_for_is_refused(tmp_path: Path) -> None:
    """A Llama with biases: to leave them out would run it wrong."""
    folder = toy_dense.hf_folder(tmp_path / "hf", toy_dense.config("llama"))
    source = GGUFFile.open(toy_dense.gguf_file(folder, tmp_path / "toy.gguf"))
    source.tensors["blk.0.attn_q.bias"] = source.tensors["blk.0.attn_norm.weight"]
    with pytest.raises(Unsupported, match=r"attn_q\.bias"):
        check_shapes(read_config(source), source)
