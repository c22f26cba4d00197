"""What a dense model is, in numbers: Llama, Qwen2 and Qwen3, and what is built like them.

`DenseConfig` is to these what `ModelConfig` (config.py) is to DeepSeek's: read from GGUF metadata
or from HF's config.json, normalised, and what we do not implement is refused here. DeepSeek LLM,
Coder, Math and Prover are Llamas, and so are Mistral 7B and SmolLM2 in GGUF files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from localr1.errors import Unsupported
from localr1.models.dense_rope import rope_from_gguf, rope_from_hf
from localr1.models.fields import LARGEST, MOST_LAYERS, Fields, require
from localr1.models.rope_config import RopeConfig

GGUF_NAMES = ("llama", "qwen2", "qwen3")
HF_NAMES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """Shape of a dense model with grouped-query attention.

    `architecture` decides on what has no number: qwen2 has biases on queries, keys and values,
    qwen3 norms on each head's queries and keys. `tied`: the embedding is the head too.
    """

    architecture: str  # GGUF's name: one of GGUF_NAMES
    n_layers: int
    hidden_size: int
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_context: int
    tied: bool
    rope: RopeConfig

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                require(0 < value < LARGEST, f"{field.name} is {value}")
        require(self.n_layers <= MOST_LAYERS, f"it has {self.n_layers:,} layers")
        eps, groups = self.rms_norm_eps, self.n_heads % self.n_kv_heads
        require(math.isfinite(eps) and eps > 0, f"rms_norm_eps is {eps}")
        require(groups == 0, f"{self.n_heads} heads cannot share {self.n_kv_heads} equally")
        if self.rope.dim != self.head_dim:
            raise Unsupported(
                f"rotating {self.rope.dim} of a head's {self.head_dim} values is not supported",
                "no published Llama or Qwen model needs it: is this another kind of model?",
            )

    @property
    def cache_width(self) -> int:
        """Values of a token in one layer's cache: keys, then values."""
        return 2 * self.n_kv_heads * self.head_dim

    @property
    def attention_width(self) -> int:
        """Multiplications of one token's scores with one cached token."""
        return self.n_heads * self.head_dim

    @property
    def n_mtp_layers(self) -> int:
        """None of these models predicts several tokens."""
        return 0

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Any],
        rope_freqs: Sequence[float] = (),
    ) -> DenseConfig:
        """From a GGUF's metadata and tensor table (rows with a `shape` in numpy's order), and the
        values of its `rope_freqs.weight` where it has one.

        Raises Unsupported (something that is not implemented), BadFile (keys missing or out of
        range).
        """
        arch = metadata["general.architecture"]
        f = Fields(metadata, "the GGUF metadata", f"{arch}.")
        for key in ("expert_count", "attention.sliding_window"):
            if f.integer(key, 0):
                raise _variant(f"{arch}.{key}", f.get(key))
        heads, hidden = f.integer("attention.head_count"), f.integer("embedding_length")
        head_dim = f.integer("attention.key_length", hidden // max(heads, 1))
        if f.integer("attention.value_length", head_dim) != head_dim:
            raise _variant(f"{arch}.attention.value_length", f.get("attention.value_length"))
        embedding = tensors.get("token_embd.weight")
        words = metadata.get("tokenizer.ggml.tokens", ())
        rope_dim = f.integer("rope.dimension_count", head_dim)
        return cls(
            architecture=arch,
            n_layers=f.integer("block_count"),
            hidden_size=hidden,
            vocab_size=embedding.shape[0] if embedding else f.integer("vocab_size", len(words)),
            n_heads=heads,
            n_kv_heads=f.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate_size=f.integer("feed_forward_length"),
            rms_norm_eps=f.real("attention.layer_norm_rms_epsilon"),
            max_context=f.integer("context_length"),
            tied="output.weight" not in tensors,
            # converters permute the rows of a Llama's queries and keys, but not a Qwen's
            rope=rope_from_gguf(f, rope_dim, arch == "llama", rope_freqs),
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DenseConfig:
        """From the content of config.json, whose architecture is one of HF_NAMES.

        Raises Unsupported or BadFile, as `from_gguf`.
        """
        f = Fields(config, "config.json")
        _refuse_hf_variants(f)
        heads, hidden = f.integer("num_attention_heads"), f.integer("hidden_size")
        head_dim = f.integer("head_dim", hidden // max(heads, 1))
        require(0 < head_dim < LARGEST, f"head_dim is {head_dim}")
        return cls(
            architecture=HF_NAMES[config["architectures"][0]],
            n_layers=f.integer("num_hidden_layers"),
            hidden_size=hidden,
            vocab_size=f.integer("vocab_size"),
            n_heads=heads,
            n_kv_heads=f.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            intermediate_size=f.integer("intermediate_size"),
            rms_norm_eps=f.real("rms_norm_eps", 1e-6),
            max_context=f.integer("max_position_embeddings"),
            tied=f.boolean("tie_word_embeddings", False),
            rope=rope_from_hf(f, head_dim),
        )


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a model of this file's kinds."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]) in HF_NAMES


def _variant(key: str, found: object) -> Unsupported:
    return Unsupported(
        f"{key} = {repr(found)[:60]} is not supported",
        "dense Llama, Qwen2 and Qwen3 models are, each token seeing all before it",
    )


def _refuse_hf_variants(f: Fields) -> None:
    """Switches of the HF classes that we do not implement; running on would be wrong."""
    expected = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
    }
    for key, value in expected.items():
        if f.get(key, value) != value:
            raise _variant(f"{key} in config.json", f.get(key))
    kinds = f.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise _variant("layer_types in config.json", kinds)
