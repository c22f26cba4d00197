"""ModelConfig of the published models of DeepSeek's shape, from either file, and its refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localr1.errors import BadFile, LocalR1Error, Unsupported
from localr1.models.config import ModelConfig, RopeConfig
from localr1.models.gguf import GGUFFile
from localr1.models.safetensors import HFFolder
from tests import toy

YARN_V2 = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
YARN_V3 = YARN_V2 | {"mscale": 1.0, "mscale_all_dim": 1.0}
MLA = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "hidden_act": "silu", "moe_layer_freq": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "attention_bias": False,
}  # fmt: skip
V2 = MLA | {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "vocab_size": 102400, "hidden_size": 5120, "num_hidden_layers": 60,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "first_k_dense_replace": 1, "intermediate_size": 12288, "moe_intermediate_size": 1536,
    "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 8,
    "topk_group": 3, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
    "norm_topk_prob": False, "routed_scaling_factor": 16.0,
    "max_position_embeddings": 163840, "rope_scaling": YARN_V2,
}  # fmt: skip
V2_LITE = V2 | {
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "q_lora_rank": None, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "routed_scaling_factor": 1.0,
}  # fmt: skip
R1 = MLA | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "first_k_dense_replace": 3, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840, "rope_scaling": YARN_V3,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
MOONLIGHT = R1 | {
    "vocab_size": 163840, "hidden_size": 2048, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None,
    "first_k_dense_replace": 1, "intermediate_size": 11264, "moe_intermediate_size": 1408,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 2.446, "num_nextn_predict_layers": 0,
    "max_position_embeddings": 8192, "rope_theta": 50000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
KIMI_K2 = R1 | {
    "model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64,
    "num_key_value_heads": 64, "first_k_dense_replace": 1, "n_routed_experts": 384,
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
    "num_nextn_predict_layers": 0, "max_position_embeddings": 131072, "rope_theta": 50000.0,
    "rope_scaling": YARN_V3 | {"factor": 32.0, "beta_fast": 1.0},
}  # fmt: skip
# What the model must run with: routing, layers and rope, worked out by hand from the papers' files.
ROPE_V2 = RopeConfig(1e4, 64, 40, 4096, 32, 1, 0.707, 0.707)
ROPE_V3 = RopeConfig(1e4, 64, 40, 4096, 32, 1, 1, 1)
GROUPED_V3 = ("sigmoid", "noaux_tc", 8, 4, True)
GROUPED_V2 = ("softmax", "group_limited_greedy", 8, 3, False)
GREEDY_V2 = ("softmax", "greedy", 1, 1, False)
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[Any, ...], RopeConfig]] = {
    "V2": (V2, GROUPED_V2, ROPE_V2),
    "Coder-V2": (V2, GROUPED_V2, ROPE_V2),
    "V2-Lite": (V2_LITE, GREEDY_V2, ROPE_V2),
    "V3": (R1, GROUPED_V3, ROPE_V3),
    "R1": (R1, GROUPED_V3, ROPE_V3),
    "R1-Zero": (R1, GROUPED_V3, ROPE_V3),
    "Moonlight-16B": (MOONLIGHT, ("sigmoid", "noaux_tc", 1, 1, True), RopeConfig(5e4, 64)),
    "Kimi-K2": (
        KIMI_K2,
        ("sigmoid", "noaux_tc", 1, 1, True),
        RopeConfig(5e4, 64, 32, 4096, 1, 1, 1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hf_configurations(name: str):
    values, routing, rope = PUBLISHED[name]
    c = ModelConfig.from_hf(values)
    found = (c.scoring_func, c.topk_method, c.n_group, c.topk_group, c.norm_topk_prob)
    assert found == routing and c.rope == rope
    for ours, theirs in {
        "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "n_dense_layers": "first_k_dense_replace", "n_experts_per_tok": "num_experts_per_tok",
        "max_context": "max_position_embeddings", "hidden_size": "hidden_size",
        "vocab_size": "vocab_size", "kv_lora_rank": "kv_lora_rank", "v_head_dim": "v_head_dim",
        "intermediate_size": "intermediate_size", "n_routed_experts": "n_routed_experts",
        "moe_intermediate_size": "moe_intermediate_size", "n_shared_experts": "n_shared_experts",
        "routed_scaling_factor": "routed_scaling_factor", "rms_norm_eps": "rms_norm_eps",
    }.items():  # fmt: skip
        assert getattr(c, ours) == values[theirs], ours
    assert c.q_lora_rank == (values["q_lora_rank"] or 0)
    assert c.n_mtp_layers == values.get("num_nextn_predict_layers", 0)


def gguf_of(values: dict[str, Any], layout: str = "new") -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensor table of the same model as a GGUF of the old or the new layout."""
    new = layout == "new"
    rope = values["rope_scaling"]
    keys = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "feed_forward_length": values["intermediate_size"],
        "leading_dense_block_count": values["first_k_dense_replace"],
        "attention.head_count": values["num_attention_heads"],
        "attention.head_count_kv": 1 if new else values["num_attention_heads"],
        "attention.kv_lora_rank": 512,
        "attention.key_length": 576 if new else 192,
        "attention.value_length": 512 if new else 128,
        "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
        "expert_count": values["n_routed_experts"],
        "expert_used_count": values["num_experts_per_tok"],
        "expert_shared_count": values["n_shared_experts"],
        "expert_feed_forward_length": values["moe_intermediate_size"],
        "expert_weights_scale": values["routed_scaling_factor"],
        "rope.dimension_count": 64,
        "rope.freq_base": values["rope_theta"],
    }
    if values["q_lora_rank"]:
        keys["attention.q_lora_rank"] = values["q_lora_rank"]
    if values["norm_topk_prob"]:
        keys |= {"expert_weights_norm": True, "expert_gating_func": 2}
    if new:
        keys |= {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
        keys |= {"expert_group_count": values["n_group"]}
        keys |= {"expert_group_used_count": values["topk_group"]}
    if rope:
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
        }
        if rope["beta_fast"] != 32:
            keys["rope.scaling.yarn_beta_fast"] = rope["beta_fast"]
    metadata = {f"deepseek2.{key}": value for key, value in keys.items()}
    metadata["general.architecture"] = "deepseek2"
    embedding = SimpleNamespace(shape=(values["vocab_size"], values["hidden_size"]))
    blocks = range(values["num_hidden_layers"])
    tensors = {f"blk.{i}.attn_norm.weight": None for i in blocks}
    return metadata, {"token_embd.weight": embedding} | tensors


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_as_gguf(name: str, layout: str):
    """Old files say nothing of groups: R1 and V2 still get theirs."""
    values = PUBLISHED[name][0] | {"num_nextn_predict_layers": 0}
    assert ModelConfig.from_gguf(*gguf_of(values, layout)) == ModelConfig.from_hf(values)


def test_old_r1_file_without_a_gating_function():
    metadata, tensors = gguf_of(R1, "old")
    del metadata["deepseek2.expert_gating_func"]
    c = ModelConfig.from_gguf(metadata, tensors)
    assert (c.scoring_func, c.n_group, c.topk_group) == ("sigmoid", 8, 4)


def test_mtp_layer_is_counted_by_its_tensors():
    """block_count includes it; some converters announce it and leave its tensors out."""
    metadata, tensors = gguf_of(R1)
    metadata |= {"deepseek2.nextn_predict_layers": 1, "deepseek2.block_count": 62}
    c = ModelConfig.from_gguf(metadata, tensors)
    assert (c.n_layers, c.n_mtp_layers) == (61, 0)
    metadata["deepseek2.block_count"] = 61
    c = ModelConfig.from_gguf(metadata, tensors)
    assert (c.n_layers, c.n_mtp_layers) == (61, 0)
    tensors |= {"blk.61.attn_norm.weight": None, "blk.61.nextn.eh_proj.weight": None}
    for blocks in (61, 62):
        metadata["deepseek2.block_count"] = blocks
        c = ModelConfig.from_gguf(metadata, tensors)
        assert (c.n_layers, c.n_mtp_layers) == (61, 1)


def test_tiny_r1_has_the_numbers_of_its_card():
    source = GGUFFile.open(toy.TINY_R1)
    c = ModelConfig.from_gguf(source.metadata, source.tensors)
    assert (c.n_layers, c.n_mtp_layers, c.hidden_size, c.vocab_size) == (4, 1, 256, 768)
    assert (c.n_routed_experts, c.n_experts_per_tok, c.n_group, c.topk_group) == (16, 4, 4, 2)
    assert c.rope == RopeConfig(10000, 32, 4, 512, 32, 1, 1, 1)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("rope", [None, toy.YARN])
def test_transformers_and_our_converter_agree(version: int, rope: Any, tmp_path: Path):
    """transformers 5 writes rope_parameters and its own habits; the GGUF says the same."""
    folder = toy.hf_folder(tmp_path / "hf", toy.config(version, rope_scaling=rope))
    from_hf = ModelConfig.from_hf(HFFolder.open(folder).config)
    for layout in ("kv_b", "k_b+v_b"):
        source = GGUFFile.open(toy.gguf(folder, tmp_path / f"{layout}.gguf", layout=layout))
        assert ModelConfig.from_gguf(source.metadata, source.tensors) == from_hf


REFUSED = {
    "architecture": {"architectures": ["LlamaForCausalLM"]},
    "no architecture": {"architectures": None, "model_type": None},
    "routing": {"topk_method": "greedy"},
    "scoring": {"scoring_func": "tanh"},
    "moe_layer_freq": {"moe_layer_freq": 2},
    "activation": {"hidden_act": "gelu"},
    "bias": {"attention_bias": True},
    "grouped heads": {"num_key_value_heads": 8},
    "rope type": {"rope_scaling": {"type": "linear", "factor": 2}},
    "rope attention_factor": {"rope_scaling": YARN_V3 | {"attention_factor": 2.0}},
    "half rope": {"rope_interleave": False},
}
WRONG = {
    "more experts than there are": {"num_experts_per_tok": 257},
    "groups that do not divide": {"n_group": 7},
    "more groups than there are": {"topk_group": 9},
    "groups too small": {"topk_group": 1, "num_experts_per_tok": 33},
    "groups of one": {"n_group": 256, "topk_group": 8},
    "no experts": {"n_routed_experts": None},
    "zero size": {"hidden_size": 0},
    "negative size": {"vocab_size": -1},
    "absurd layers": {"num_hidden_layers": 1 << 30},
    "absurd size": {"vocab_size": 1 << 40},
    "text for a number": {"hidden_size": "7168"},
    "true for a number": {"num_hidden_layers": True},
    "number for true": {"norm_topk_prob": 1},
    "not finite": {"routed_scaling_factor": float("inf")},
    "too big for a float": {"rms_norm_eps": 10**400},
    "zero epsilon": {"rms_norm_eps": 0.0},
    "dense layers": {"first_k_dense_replace": 62},
    "odd rope": {"qk_rope_head_dim": 63},
    "YaRN without a factor": {"rope_scaling": {"type": "yarn"}},
    "YaRN that shrinks": {"rope_scaling": YARN_V3 | {"factor": 0.5}},
    "rope is a list": {"rope_scaling": [1]},
}


@pytest.mark.parametrize("what", REFUSED)
def test_unsupported_configurations_are_refused(what: str):
    with pytest.raises(Unsupported) as error:
        ModelConfig.from_hf(R1 | REFUSED[what])
    assert error.value.hint and "\n" not in str(error.value)


@pytest.mark.parametrize("what", WRONG)
def test_impossible_configurations_are_refused(what: str):
    with pytest.raises(BadFile) as error:
        ModelConfig.from_hf(R1 | WRONG[what])
    assert error.value.hint and "\n" not in str(error.value)


def test_gguf_of_another_architecture_is_refused_by_name():
    for name in ("llama", "qwen2", None, 3):
        with pytest.raises(Unsupported, match=str(name)):
            ModelConfig.from_gguf({"general.architecture": name}, {})


@pytest.mark.parametrize(
    "change",
    [
        {"expert_gating_func": 3},
        {"block_count": 1 << 31},
        {"nextn_predict_layers": 1 << 31},
        {"attention.head_count": [128] * 61},
        {"rope.scaling.type": "longrope"},
        {"expert_group_count": 0},
        {"attention.key_length_mla": 64},
    ],
)
def test_gguf_with_damaged_keys(change: dict[str, Any]):
    metadata, tensors = gguf_of(R1)
    metadata |= {f"deepseek2.{key}": value for key, value in change.items()}
    with pytest.raises(LocalR1Error) as error:
        ModelConfig.from_gguf(metadata, tensors)
    assert error.value.hint


def test_every_required_key_is_named_when_it_is_missing():
    metadata, tensors = gguf_of(MOONLIGHT)
    for key in ("block_count", "attention.kv_lora_rank", "expert_used_count", "context_length"):
        partial = {k: v for k, v in metadata.items() if k != f"deepseek2.{key}"}
        with pytest.raises(BadFile, match=key.replace(".", r"\.")):
            ModelConfig.from_gguf(partial, tensors)
