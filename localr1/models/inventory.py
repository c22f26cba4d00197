"""The weights of a model as the planner takes them: name, bytes, what for, how much a token reads.

From an opened file to the byte; or, when nothing was fetched, from the model's configuration and
its quant's rule. Also what the model asks for beside its weights: cache and activations. Not here:
reading any weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localr1.errors import Unsupported
from localr1.gpu.sizes import KEYS_BYTES, PIECE, SLOTS, STREAMED, halved_from
from localr1.models import cache_layout
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.dense_config import ROPE_FREQS, DenseConfig
from localr1.models.quant_rules import BLOCKS, DEFAULTS, family_of, nbytes_of, type_of
from localr1.models.shapes import Shape, weight_shapes
from offload.placement import Demands, Kind, Weight

if TYPE_CHECKING:
    from localr1.models.source import Source

_NEWER_LAYOUT = ("attn_k_b.weight", "attn_v_b.weight")
_OLDER_LAYOUT = ("attn_kv_b.weight",)
# What publishers' own mixes give to everything but the routed experts, by the name's beginning.
_MIXED_BASE = (("UD-", "Q6_K"), ("FP8", "Q8_0"), ("", "Q4_K_M"))


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is to be placed. `approximate`: experts' bytes come from the file's rounded size."""

    weights: tuple[Weight, ...]
    demands: Demands
    max_context: int
    approximate: bool = False

    def with_cache(self, cache: str) -> Inventory:
        """With a GPU's cache in the form `cache`, one of cache_layout.CACHES."""
        if cache == cache_layout.IN_16_BITS:
            return self
        return replace(self, demands=self.demands.in_8_bits())

    @property
    def nbytes(self) -> int:
        """All weights together."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def parameters(self) -> int:
        """Numbers that take part in computing, the embedding's left out."""
        return sum(weight.values for weight in self.weights)


def from_source(source: Source, config: Config) -> Inventory:
    """The weights of an open file, exactly; its header and MTP layer are `Kind.UNUSED`."""
    sizes = [(name, source[name]) for name in source.names()]
    weights = [_weight(name, w.shape, w.format.name, w.nbytes, config) for name, w in sizes]
    header = source.nbytes - sum(weight.nbytes for weight in weights)
    weights.append(Weight("header", max(0, header), 0.0, Kind.UNUSED))
    return Inventory(tuple(weights), demands(config), config.max_context)


def from_rule(
    config: Config, quant: str, file_bytes: int | None = None, newer: bool = False
) -> Inventory:
    """The weights that a file of `quant` holds. `file_bytes` is its size, where that is known;
    `newer`: in the newer of the two layouts of attention. The published R1 files have the older
    one, which takes 0.1 % less in a file and 5 % more of what a GPU holds (`keys_on_gpu`).

    Quants without a rule (publishers' mixes) take what `file_bytes` leaves for the routed experts.
    Raises Unsupported where there is neither.
    """
    if quant in DEFAULTS:
        return Inventory(tuple(_by_rule(config, quant, newer)), demands(config), config.max_context)
    if file_bytes is None:
        hint = f"known are {', '.join(DEFAULTS)}; or give the path of its file"
        raise Unsupported(f"how big {quant} is cannot be said from its name", hint)
    base = next(kind for start, kind in _MIXED_BASE if quant.startswith(start))
    weights = tuple(_by_rule(config, base, newer))
    scaled = Kind.ROUTED if any(w.kind == Kind.ROUTED for w in weights) else Kind.DENSE
    kept = sum(weight.nbytes for weight in weights if weight.kind != scaled)
    values = sum(weight.values for weight in weights if weight.kind == scaled)
    share = max(file_bytes - kept, 0) / values
    return Inventory(
        tuple(_scaled(weight, share) if weight.kind == scaled else weight for weight in weights),
        demands(config),
        config.max_context,
        approximate=True,
    )


def _scaled(weight: Weight, bytes_per_value: float) -> Weight:
    return replace(weight, nbytes=int(weight.values * bytes_per_value))


def _by_rule(config: Config, quant: str, newer: bool) -> Iterator[Weight]:
    family = family_of(config)
    for name, shape in _shapes(config, newer):
        kind = type_of(name, shape, quant, family)
        yield _weight(name, shape, kind, nbytes_of(kind, shape), config)


def _shapes(config: Config, newer: bool) -> Iterator[tuple[str, Shape]]:
    """The weights of a newly made file."""
    other_layout = _OLDER_LAYOUT if newer else _NEWER_LAYOUT
    for name, shape in weight_shapes(config).items():
        if name.endswith((*other_layout, ROPE_FREQS)):
            continue
        if isinstance(config, ModelConfig) and _is_unused_bias(name, config):
            continue
        yield name, shape


def _is_unused_bias(name: str, config: ModelConfig) -> bool:
    return name.endswith("exp_probs_b.bias") and config.topk_method != "noaux_tc"


def _weight(name: str, shape: Shape, format: str, nbytes: int, config: Config) -> Weight:
    kind = _kind(name, config)
    fraction = 1.0
    if kind == Kind.ROUTED and isinstance(config, ModelConfig):
        fraction = config.n_experts_per_tok / config.n_routed_experts
    elif kind == Kind.EMBEDDING:
        fraction = 1 / config.vocab_size
    elif kind == Kind.UNUSED:
        fraction = 0.0
    values = 0 if kind in (Kind.EMBEDDING, Kind.UNUSED) else math.prod(shape)
    extra = 0
    if kind == Kind.ROUTER:  # float32 on a GPU, whatever the file has
        extra = 4 * math.prod(shape) - nbytes
    elif kind == Kind.ATTENTION and name.endswith(_OLDER_LAYOUT):
        assert isinstance(config, ModelConfig)
        extra = _turned_extra(shape, format, nbytes, config)
    return Weight(name, nbytes, fraction, kind, values, extra)


def keys_on_gpu(format: str, config: ModelConfig) -> str:
    """The format of the keys that a GPU makes of an `attn_kv_b` in `format`.

    It wants them the other way round. Blocks run along rows, so they are undone; floats only move.
    """
    if _is_cut(format, config):
        return "F32"
    return format if BLOCKS.get(format, (0, 0))[0] == 1 else "F16"


def _is_cut(format: str, config: ModelConfig) -> bool:
    """Whether FP8's scales reach over keys and values, and attention.py makes float32 of both."""
    return format == "FP8_E4M3" and bool(config.qk_nope_head_dim % 128 or config.v_head_dim % 128)


def _turned_extra(shape: Shape, format: str, nbytes: int, c: ModelConfig) -> int:
    """What a GPU holds more of an `attn_kv_b`."""
    if _is_cut(format, c):
        return nbytes_of("F32", shape) - nbytes
    keys, both = c.qk_nope_head_dim, c.qk_nope_head_dim + c.v_head_dim
    turned = nbytes_of(keys_on_gpu(format, c), (c.n_heads * keys, c.kv_lora_rank))
    return turned - nbytes * keys // both


def _kind(name: str, config: Config) -> Kind:
    block = re.match(r"blk\.(\d+)\.", name)
    if block and int(block[1]) >= config.n_layers:
        return Kind.UNUSED
    if name == "token_embd.weight":
        tied = isinstance(config, DenseConfig) and config.tied
        return Kind.HEAD if tied else Kind.EMBEDDING
    if name == "output.weight":
        return Kind.HEAD
    if name == ROPE_FREQS:
        return Kind.ROUTER
    if "_norm" in name or "ffn_gate_inp" in name or "exp_probs_b" in name or "bias" in name:
        return Kind.ROUTER
    if "_exps" in name:
        return Kind.ROUTED
    if "_shexp" in name:
        return Kind.SHARED
    return Kind.DENSE if "ffn_" in name else Kind.ATTENTION


def demands(config: Config) -> Demands:
    """Cache and activations of the model, in bytes."""
    return _latent(config) if isinstance(config, ModelConfig) else _grouped(config)


def _latent(c: ModelConfig) -> Demands:
    """MLA: the cache holds one latent a layer and token.

    A GPU holds a prompt's hidden states beside their norms, which take the place of the experts'
    answers, in float32.
    Activations of the CPU by token, in attention (attention.py), where they are most: the hidden
    states three times, queries, their rotated part and all heads' values, in float32; int8 forms of
    one input in two terms; the kernels' workspace, which holds two terms of the widest product.
    """
    width, heads, hidden = c.cache_width, c.n_heads, c.hidden_size
    query = c.qk_nope_head_dim + c.qk_rope_head_dim
    lives = 4 * (3 * hidden + heads * (query + c.qk_rope_head_dim + c.v_head_dim)) + 5 * hidden // 2
    wide = max(8 * heads * query, 8 * hidden + 5 * heads * c.v_head_dim // 2)
    stack = 8 * heads * c.kv_lora_rank  # two terms of the absorbed queries
    absorbed = lives + 4 * heads * (width + c.kv_lora_rank) + stack
    piece = max(_latent_piece(c), _ffn_piece(c.intermediate_size))
    pairs = c.n_experts_per_tok * (c.moe_intermediate_size * 5 // 4 + 32)
    return Demands(
        n_layers=c.n_layers,
        cache_name="MLA cache",
        cache_gpu=cache_layout.on_gpu(c).nbytes,
        cache_gpu_8bit=cache_layout.on_gpu(c, cache_layout.IN_8_BITS).nbytes,
        cache_ram=cache_layout.on_cpu(c).nbytes,
        gpu_per_token=8 * hidden,
        halved_from=halved_from(c),
        gpu_piece=piece,
        gpu_streaming=3 * STREAMED + max(0, _slots(c) - piece),
        ram_per_token=lives + wide,
        hybrid_per_token=8 * hidden,
        experts_per_token=4 * hidden + pairs,
        embedded_per_token=4 * hidden,
        absorbed_per_token=absorbed,
        decode_operations=2 * heads * (width + c.kv_lora_rank),
        prompt_operations=2 * heads * (query + c.v_head_dim),
    )


def _grouped(c: DenseConfig) -> Demands:
    """Grouped-query attention: keys and values of every key head. On a GPU a prompt's hidden states
    lie beside their norms.
    """
    queries = c.attention_width
    per_token = 4 * (3 * c.hidden_size + 3 * queries) + 8 * max(queries, c.hidden_size)
    return Demands(
        n_layers=c.n_layers,
        cache_name="KV cache",
        cache_gpu=cache_layout.on_gpu(c).nbytes,
        cache_gpu_8bit=cache_layout.on_gpu(c, cache_layout.IN_8_BITS).nbytes,
        cache_ram=cache_layout.on_cpu(c).nbytes,
        gpu_per_token=8 * c.hidden_size,
        halved_from=halved_from(c),
        gpu_piece=_ffn_piece(c.intermediate_size),
        gpu_streaming=0,
        ram_per_token=per_token,
        hybrid_per_token=8 * c.hidden_size,
        experts_per_token=4 * c.hidden_size + 5 * c.intermediate_size // 4,
        embedded_per_token=4 * c.hidden_size,
        absorbed_per_token=per_token,
        decode_operations=4 * queries,
        prompt_operations=4 * queries,
    )


def _slots(c: ModelConfig) -> int:
    """What experts make there of the choices that they answer at a time, float32: their inputs and
    answers; gate, up and their product.
    """
    return SLOTS * (8 * c.hidden_size + 12 * c.moe_intermediate_size)


def _latent_piece(c: ModelConfig) -> int:
    """Attention of a piece of a prompt on a GPU: queries in float32 and bf16, and their answers;
    the keys and values of many tokens, and the weights that make them, in bf16.
    """
    query, pair = c.qk_nope_head_dim + c.qk_rope_head_dim, c.qk_nope_head_dim + c.v_head_dim
    queries = PIECE * c.n_heads * (6 * query + 4 * c.v_head_dim)
    weights = 2 * c.n_heads * c.kv_lora_rank * pair
    return queries + weights + min(KEYS_BYTES, 2 * c.n_heads * pair * c.max_context)


def _ffn_piece(width: int) -> int:
    """Gate, up and their product for a piece of a prompt on a GPU, float32."""
    return 12 * PIECE * width
