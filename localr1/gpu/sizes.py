"""The sizes that the kernels of this package are compiled for: DeepSeek-R1's, and others' like it;
and how much of a prompt they take at a time, which the plan counts.

A `ModelConfig` is `LatentSizes`, a `DenseConfig` `GroupedSizes`: the kernels lie below the model's
code and do not know its classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PIECE = 1024  # tokens of a prompt that a part takes at a time: 230 MB in R1's dense layers
SLOTS = 4096  # choices of experts that they answer at a time: 335 MB in R1
STREAMED = 256 << 20  # bytes of experts that cross to the GPU as one piece, for a prompt
KEYS_BYTES = 128 << 20  # of keys and values that latent attention makes of latents at a time
_LONG = 4096  # tokens of which halves still fill the GPU's kernels
_FULL = 512  # tokens of an expert, of which halves still fill its


class Sizes(Protocol):
    """What kernels ask of any model's configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...


class LatentSizes(Sizes, Protocol):
    """Of latent attention and routed experts; names as in `ModelConfig`."""

    @property
    def q_lora_rank(self) -> int: ...
    @property
    def kv_lora_rank(self) -> int: ...
    @property
    def qk_nope_head_dim(self) -> int: ...
    @property
    def qk_rope_head_dim(self) -> int: ...
    @property
    def v_head_dim(self) -> int: ...
    @property
    def moe_intermediate_size(self) -> int: ...
    @property
    def n_routed_experts(self) -> int: ...
    @property
    def n_shared_experts(self) -> int: ...
    @property
    def n_experts_per_tok(self) -> int: ...
    @property
    def n_group(self) -> int: ...
    @property
    def topk_group(self) -> int: ...
    @property
    def scoring_func(self) -> str: ...
    @property
    def topk_method(self) -> str: ...
    @property
    def norm_topk_prob(self) -> bool: ...


class Rotation(Protocol):
    """Whether rotated pairs lie side by side, or a head's halves face each other."""

    @property
    def interleaved(self) -> bool: ...


@runtime_checkable
class GroupedSizes(Sizes, Protocol):
    """Of grouped-query attention and dense FFNs; names as in `DenseConfig`."""

    @property
    def architecture(self) -> str: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rope(self) -> Rotation: ...


AnySizes = LatentSizes | GroupedSizes


def experts_per_token(sizes: AnySizes) -> int:
    """How many experts a token asks for; a dense FFN is the only expert of its layer."""
    return 1 if isinstance(sizes, GroupedSizes) else sizes.n_experts_per_tok


def halved_from(sizes: AnySizes) -> int:
    """Tokens of a prompt from which on it is read in halves side by side (engine/halves.py): that
    each is many for the GPU's kernels, and for an expert's.
    """
    experts = 1 if isinstance(sizes, GroupedSizes) else sizes.n_routed_experts
    return max(_LONG, _FULL * experts // experts_per_token(sizes))


def ffn_widths(sizes: AnySizes) -> set[int]:
    """Of dense FFNs and the shared expert."""
    if isinstance(sizes, GroupedSizes):
        return {sizes.intermediate_size}
    return {sizes.n_shared_experts * sizes.moe_intermediate_size, sizes.intermediate_size} - {0}


@dataclass(frozen=True, slots=True)
class KnownSizes:
    """DeepSeek-R1's sizes where nothing else is said."""

    hidden_size: int = 7168
    vocab_size: int = 129280
    n_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    n_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True


R1 = KnownSizes()


@dataclass(frozen=True, slots=True)
class Rotated:
    """See Rotation."""

    interleaved: bool


@dataclass(frozen=True, slots=True)
class KnownGroupedSizes:
    """The sizes of the 7B model that was distilled from R1, a Qwen2, where nothing else is said."""

    architecture: str = "qwen2"
    hidden_size: int = 3584
    vocab_size: int = 152064
    n_heads: int = 28
    n_kv_heads: int = 4
    head_dim: int = 128
    intermediate_size: int = 18944
    rope: Rotated = Rotated(interleaved=False)


DISTILL_7B = KnownGroupedSizes()
