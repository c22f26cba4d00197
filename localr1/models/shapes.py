"""Every weight of a model, by GGUF name, with its shape: what a file is checked against.

Vectors have the shape (1, n), as the files give them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from localr1.errors import BadFile, Unsupported
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.dense_config import ROPE_FREQS, DenseConfig

if TYPE_CHECKING:  # importing numba takes longer than a plan
    from cpu_experts import QuantTensor

Shape = tuple[int, ...]


class WeightFile(Protocol):
    """A file or folder of weights under GGUF names."""

    def names(self) -> Iterable[str]: ...

    def __getitem__(self, name: str) -> QuantTensor: ...


def weight_shapes(config: Config) -> dict[str, Shape]:
    """Name -> shape of all weights the model may have, both layouts of `attn_kv_b` included."""
    c = config
    shapes: dict[str, Shape] = {"token_embd.weight": (c.vocab_size, c.hidden_size)}
    for layer in range(c.n_layers):
        parts = _grouped_layer(c) if isinstance(c, DenseConfig) else _latent_layer(c, layer)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts}
    shapes["output_norm.weight"] = (1, c.hidden_size)
    if isinstance(c, ModelConfig) or not c.tied:
        shapes["output.weight"] = (c.vocab_size, c.hidden_size)
    if isinstance(c, DenseConfig) and c.architecture == "llama":
        shapes[ROPE_FREQS] = (1, c.head_dim // 2)
    return shapes


def _grouped_layer(c: DenseConfig) -> Iterator[tuple[str, Shape]]:
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield "attn_norm.weight", (1, c.hidden_size)
    for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
        yield f"{name}.weight", (rows, c.hidden_size)
        if c.architecture == "qwen2":
            yield f"{name}.bias", (1, rows)
    if c.architecture == "qwen3":
        yield "attn_q_norm.weight", (1, c.head_dim)
        yield "attn_k_norm.weight", (1, c.head_dim)
    yield "attn_output.weight", (c.hidden_size, queries)
    yield "ffn_norm.weight", (1, c.hidden_size)
    yield from _dense(c)


def _latent_layer(c: ModelConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    yield from _attention(c)
    yield from _dense(c) if layer < c.n_dense_layers else _moe(c)


def _attention(c: ModelConfig) -> Iterator[tuple[str, Shape]]:
    q_rows = c.n_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    yield "attn_norm.weight", (1, c.hidden_size)
    if c.q_lora_rank:
        yield "attn_q_a.weight", (c.q_lora_rank, c.hidden_size)
        yield "attn_q_a_norm.weight", (1, c.q_lora_rank)
        yield "attn_q_b.weight", (q_rows, c.q_lora_rank)
    else:
        yield "attn_q.weight", (q_rows, c.hidden_size)
    yield "attn_kv_a_mqa.weight", (c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size)
    yield "attn_kv_a_norm.weight", (1, c.kv_lora_rank)
    kv_rows = c.n_heads * (c.qk_nope_head_dim + c.v_head_dim)
    yield "attn_kv_b.weight", (kv_rows, c.kv_lora_rank)
    yield "attn_k_b.weight", (c.n_heads, c.kv_lora_rank, c.qk_nope_head_dim)
    yield "attn_v_b.weight", (c.n_heads, c.v_head_dim, c.kv_lora_rank)
    yield "attn_output.weight", (c.hidden_size, c.n_heads * c.v_head_dim)
    yield "ffn_norm.weight", (1, c.hidden_size)


def _dense(c: Config) -> Iterator[tuple[str, Shape]]:
    yield "ffn_gate.weight", (c.intermediate_size, c.hidden_size)
    yield "ffn_up.weight", (c.intermediate_size, c.hidden_size)
    yield "ffn_down.weight", (c.hidden_size, c.intermediate_size)


def _moe(c: ModelConfig) -> Iterator[tuple[str, Shape]]:
    routed, inter = c.n_routed_experts, c.moe_intermediate_size
    shared = c.n_shared_experts * inter
    yield "ffn_gate_inp.weight", (routed, c.hidden_size)
    yield "exp_probs_b.bias", (1, routed)
    yield "ffn_gate_exps.weight", (routed, inter, c.hidden_size)
    yield "ffn_up_exps.weight", (routed, inter, c.hidden_size)
    yield "ffn_down_exps.weight", (routed, c.hidden_size, inter)
    if shared:
        yield "ffn_gate_shexp.weight", (shared, c.hidden_size)
        yield "ffn_up_shexp.weight", (shared, c.hidden_size)
        yield "ffn_down_shexp.weight", (c.hidden_size, shared)


def check_shapes(config: Config, source: WeightFile) -> set[str]:
    """The formats in use, if all weights have the shapes that the configuration says.

    Raises BadFile for a weight of another shape, Unsupported for one that this model does not know:
    to leave it out would run the model wrong. The MTP layer behind the last one is not looked at.
    """
    shapes = weight_shapes(config)
    mtp = tuple(f"blk.{config.n_layers + i}." for i in range(config.n_mtp_layers))
    formats = set()
    for name in source.names():
        if mtp and name.startswith(mtp):
            continue
        if name not in shapes:
            hint = "the file holds a variant of the model that is not implemented"
            raise Unsupported(f"this model has no place for the weight {name}", hint)
        weight = source[name]
        if weight.shape != shapes[name]:
            found, wanted = (" x ".join(map(str, s)) for s in (weight.shape, shapes[name]))
            hint = "the file is damaged: get it again"
            raise BadFile(f"{name} is {found}, and the model needs {wanted}", hint)
        formats.add(weight.format.name)
    return formats
