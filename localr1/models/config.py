"""What a model is, in numbers: `ModelConfig`, read from GGUF metadata or from HF's config.json.

Sizes carry DeepSeek's names. The numbers are normalised, so nothing behind this file asks where
they came from or which habit a converter had; what we do not implement is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from localr1.errors import Unsupported
from localr1.models.fields import LARGEST, MOST_LAYERS, Fields, require
from localr1.models.rope_config import RopeConfig

__all__ = ["ModelConfig", "RopeConfig"]

_METHODS = {
    "softmax": ("greedy", "group_limited_greedy"),
    "sigmoid": ("noaux_tc",),
}
# (n_group, topk_group) of models whose older GGUF files do not say it, by (experts, scoring).
_GROUPS = {(256, "sigmoid"): (8, 4), (160, "softmax"): (8, 3)}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and routing of a DeepSeek-V2/V3/R1 model.

    Routing: scores by `scoring_func`; `topk_method` chooses `n_experts_per_tok` of them; with
    `norm_topk_prob` the weights are divided by their sum; then all are multiplied by
    `routed_scaling_factor`.
    """

    architecture: str  # GGUF's name: "deepseek2"
    n_layers: int  # without the MTP layers, which follow as blk.{n_layers} and on
    n_mtp_layers: int
    hidden_size: int
    vocab_size: int
    n_heads: int
    q_lora_rank: int  # 0: one projection, no low rank
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_dense_layers: int  # DeepSeek's first_k_dense_replace
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    n_experts_per_tok: int
    n_group: int
    topk_group: int
    scoring_func: str  # "softmax" | "sigmoid"
    topk_method: str  # "greedy" | "group_limited_greedy" | "noaux_tc"
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    max_context: int
    rope: RopeConfig

    def __post_init__(self) -> None:
        may_be_zero = {"n_mtp_layers", "q_lora_rank", "n_dense_layers", "n_shared_experts"}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                least = 0 if field.name in may_be_zero else 1
                require(least <= value < LARGEST, f"{field.name} is {value}")
        require(self.n_layers <= MOST_LAYERS, f"it has {self.n_layers:,} layers")
        for name in ("routed_scaling_factor", "rms_norm_eps"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name} is {value}")
        require(self.n_dense_layers <= self.n_layers, "it has more dense layers than layers")
        require(self.rope.dim == self.qk_rope_head_dim, "rope covers another dimension than q")
        self._check_routing()

    def _check_routing(self) -> None:
        if self.topk_method not in _METHODS.get(self.scoring_func, ()):
            raise Unsupported(
                f"expert routing {self.scoring_func!r:.40} with {self.topk_method!r:.40} "
                "is not supported",
                "known are softmax with greedy or group_limited_greedy, and sigmoid with noaux_tc",
            )
        experts, groups = self.n_routed_experts, self.n_group
        require(self.n_experts_per_tok <= experts, f"a token takes more than {experts} experts")
        require(experts % groups == 0, f"{experts} experts cannot form {groups} equal groups")
        require(self.topk_group <= groups, f"a token takes {self.topk_group} of {groups} groups")
        reach = experts // groups * self.topk_group
        require(self.n_experts_per_tok <= reach, f"a token's groups hold only {reach} experts")
        if self.topk_method == "noaux_tc" and groups > 1:  # a group counts as its two best experts
            require(experts // groups >= 2, "a group holds a single expert")

    @property
    def cache_width(self) -> int:
        """Values of a token in one layer's cache: its latent and its rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def attention_width(self) -> int:
        """Multiplications of one token's scores with one cached token."""
        return self.n_heads * self.kv_lora_rank

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
        """From a GGUF's metadata and tensor table (rows with a `shape` in numpy's order).

        Raises Unsupported (another architecture, routing or rope scaling), BadFile (keys missing or
        out of range).
        """
        arch = metadata.get("general.architecture")
        if arch != "deepseek2":
            raise _other_architecture(arch)
        f = Fields(metadata, "the GGUF metadata", "deepseek2.")
        blocks = f.integer("block_count")
        n_layers, n_mtp = _split_blocks(blocks, f.integer("nextn_predict_layers", 0), tensors)
        experts = f.integer("expert_count")
        scoring = _gguf_scoring(f, experts, n_layers)
        n_group, topk_group = _GROUPS.get((experts, scoring), (1, 1))
        n_group = f.integer("expert_group_count", n_group)
        topk_group = f.integer("expert_group_used_count", min(topk_group, n_group))
        rope_dim = f.integer("rope.dimension_count")
        key_length = f.integer("attention.key_length_mla", f.integer("attention.key_length", 0))
        v_length = f.integer("attention.value_length_mla", f.integer("attention.value_length", 0))
        limited = "group_limited_greedy" if n_group > 1 else "greedy"
        moe_size = f.integer("expert_feed_forward_length")
        return cls(
            architecture="deepseek2",
            n_layers=n_layers,
            n_mtp_layers=n_mtp,
            hidden_size=f.integer("embedding_length"),
            vocab_size=_gguf_vocab_size(f, metadata, tensors),
            n_heads=f.integer("attention.head_count"),
            q_lora_rank=f.integer("attention.q_lora_rank", 0),
            kv_lora_rank=f.integer("attention.kv_lora_rank"),
            qk_nope_head_dim=key_length - rope_dim,
            qk_rope_head_dim=rope_dim,
            v_head_dim=v_length,
            n_dense_layers=f.integer("leading_dense_block_count", 0),
            intermediate_size=f.integer("feed_forward_length", moe_size),
            moe_intermediate_size=moe_size,
            n_routed_experts=experts,
            n_shared_experts=f.integer("expert_shared_count", 0),
            n_experts_per_tok=f.integer("expert_used_count"),
            n_group=n_group,
            topk_group=topk_group,
            scoring_func=scoring,
            topk_method="noaux_tc" if scoring == "sigmoid" else limited,
            norm_topk_prob=f.boolean("expert_weights_norm", False),
            # converters leave the scale out, or write 0, for "do not scale"
            routed_scaling_factor=f.real("expert_weights_scale", 1.0) or 1.0,
            rms_norm_eps=f.real("attention.layer_norm_rms_epsilon"),
            max_context=f.integer("context_length"),
            rope=RopeConfig.from_gguf(f, rope_dim),
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From the content of config.json (DeepseekV2ForCausalLM, DeepseekV3ForCausalLM).

        Raises Unsupported or BadFile, as `from_gguf`.
        """
        v3 = _hf_is_v3(config)
        f = Fields(config, "config.json")
        _refuse_hf_variants(f)
        method = f.text("topk_method", "noaux_tc" if v3 else "greedy")
        grouped = method != "greedy"
        rope_dim = f.integer("qk_rope_head_dim")
        return cls(
            architecture="deepseek2",
            n_layers=f.integer("num_hidden_layers"),
            n_mtp_layers=f.integer("num_nextn_predict_layers", 0),
            hidden_size=f.integer("hidden_size"),
            vocab_size=f.integer("vocab_size"),
            n_heads=f.integer("num_attention_heads"),
            q_lora_rank=f.integer("q_lora_rank", 0),
            kv_lora_rank=f.integer("kv_lora_rank"),
            qk_nope_head_dim=f.integer("qk_nope_head_dim"),
            qk_rope_head_dim=rope_dim,
            v_head_dim=f.integer("v_head_dim"),
            n_dense_layers=f.integer("first_k_dense_replace", 0),
            intermediate_size=f.integer("intermediate_size"),
            moe_intermediate_size=f.integer("moe_intermediate_size"),
            n_routed_experts=f.integer("n_routed_experts"),
            n_shared_experts=f.integer("n_shared_experts", 0),
            n_experts_per_tok=f.integer("num_experts_per_tok"),
            n_group=f.integer("n_group", 1) if grouped else 1,
            topk_group=f.integer("topk_group", 1) if grouped else 1,
            scoring_func=f.text("scoring_func", "sigmoid" if v3 else "softmax"),
            topk_method=method,
            # V2: transformers 5 never divides by the sum, whatever norm_topk_prob says, and always
            # scales; we follow it. DeepSeek's own code would divide and then not scale, but no
            # published V2 model sets the switch.
            norm_topk_prob=v3 and f.boolean("norm_topk_prob", True),
            routed_scaling_factor=f.real("routed_scaling_factor", 1.0),
            rms_norm_eps=f.real("rms_norm_eps", 1e-6),
            max_context=f.integer("max_position_embeddings"),
            rope=RopeConfig.from_hf(f, rope_dim),
        )


def _other_architecture(name: object) -> Unsupported:
    return Unsupported(
        f"models of the architecture {repr(name)[:60]} are not supported",
        "DeepSeek-V2, V3 and R1, Llama, Qwen2 and Qwen3, and models built like them, are",
    )


def _split_blocks(blocks: int, n_mtp: int, tensors: Mapping[str, Any]) -> tuple[int, int]:
    """(layers, MTP layers) that the file holds.

    By llama.cpp's convention block_count includes the MTP layers. Some converters announce them
    and leave their tensors out, so the tensors decide.
    """
    require(n_mtp < min(blocks, 64), f"{n_mtp} of {blocks} layers are for multi-token prediction")
    nextn = [i for i in range(blocks - n_mtp, blocks + n_mtp) if _has_nextn(tensors, i)]
    if nextn:
        return nextn[0], len(nextn)
    while n_mtp and f"blk.{blocks - 1}.attn_norm.weight" not in tensors:
        blocks, n_mtp = blocks - 1, n_mtp - 1
    return blocks, 0


def _has_nextn(tensors: Mapping[str, Any], layer: int) -> bool:
    return f"blk.{layer}.nextn.eh_proj.weight" in tensors


def _gguf_scoring(f: Fields, experts: int, n_layers: int) -> str:
    """Key `expert_gating_func`; files older than the key are V2's softmax, except V3's shape."""
    number = f.integer("expert_gating_func", 0)
    if number == 0:
        return "sigmoid" if (experts, n_layers) == (256, 61) else "softmax"
    if number not in (1, 2):
        raise Unsupported(
            f"expert gating function {number} is not supported",
            "softmax (1) and sigmoid (2) are",
        )
    return "softmax" if number == 1 else "sigmoid"


def _gguf_vocab_size(f: Fields, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> int:
    """Rows of the embedding: what the weights have, not what the metadata announces."""
    embedding = tensors.get("token_embd.weight")
    if embedding is not None:
        return int(embedding.shape[0])
    return f.integer("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))


def _hf_is_v3(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or [config.get("model_type")]
    name = names[0] if isinstance(names, list) and names else names
    if name in ("DeepseekV3ForCausalLM", "deepseek_v3", "kimi_k2"):
        return True
    if name in ("DeepseekV2ForCausalLM", "deepseek_v2"):
        return False
    raise _other_architecture(name)


def _refuse_hf_variants(f: Fields) -> None:
    """Switches of the HF classes that no published model turns; running on would be wrong."""
    expected = {
        "hidden_act": "silu",
        "moe_layer_freq": 1,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_interleave": True,
        "num_key_value_heads": f.integer("num_attention_heads"),
    }
    for key, value in expected.items():
        found = f.get(key, value)
        if found != value:
            raise Unsupported(
                f"config.json says {key} = {repr(found)[:60]}; only {value} is supported",
                "no published DeepSeek model needs it: is this another kind of model?",
            )
