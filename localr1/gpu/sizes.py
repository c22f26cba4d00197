"""The sizes that the kernels of this package are compiled for: DeepSeek-R1's, and others' like it.

A `ModelConfig` is a `Sizes`: the kernels lie below the model's code and do not know its classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Sizes(Protocol):
    """What kernels ask of a model's configuration; names as in `ModelConfig`."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
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
    def intermediate_size(self) -> int: ...
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
TINY_R1 = KnownSizes(
    hidden_size=256,
    vocab_size=768,
    n_heads=8,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=16,
    n_experts_per_tok=4,
    n_group=4,
    topk_group=2,
)
