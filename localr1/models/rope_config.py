"""The numbers of rotary embedding and YaRN (arXiv 2309.00071), from GGUF or config.json.

`RopeConfig` is every model's; what is read here is DeepSeek's, the dense models' is in dense_rope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from localr1.errors import Unsupported
from localr1.models.fields import LARGEST, Fields, require


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature `0.1 * mscale * ln(factor) + 1` (1 where nothing is stretched)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding over `dim` values; `factor` 1.0 means no YaRN.

    With YaRN, cos and sin are multiplied by `attention_factor`, or where that is 0 by
    `m(mscale) / m(mscale_all_dim)` (by `m(1)` if one of the two is 0), and the softmax scale by
    `m(mscale_all_dim) ** 2`, where `m` is `yarn_mscale`. As in transformers' yarn.
    """

    theta: float
    dim: int
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0
    interleaved: bool = True  # pairs are (x[2i], x[2i + 1]), else (x[i], x[i + dim / 2])
    divisors: tuple[float, ...] = ()  # of each pair's frequency: Llama 3's, or linear scaling's

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                     "attention_factor"):  # fmt: skip
            require(math.isfinite(getattr(self, name)), f"rope {name} is not a finite number")
        require(self.theta > 1, f"rope theta is {self.theta}")
        require(0 < self.dim < LARGEST and self.dim % 2 == 0, f"the rope dimension is {self.dim}")
        require(self.factor >= 1, f"the YaRN factor is {self.factor}")
        require(self.factor == 1 or self.original_context > 0, "YaRN has no original context")
        require(self.beta_fast >= self.beta_slow > 0, "the YaRN betas are out of order")
        require(self.mscale >= 0 and self.mscale_all_dim >= 0, "a YaRN mscale is negative")
        require(self.attention_factor >= 0, "rope attention_factor is negative")
        require(len(self.divisors) in (0, self.dim // 2), "rope has not a factor for each pair")
        good = all(math.isfinite(d) and d > 0 for d in self.divisors)
        require(good, "a factor of the rope frequencies is not a number above 0")

    @classmethod
    def from_gguf(cls, f: Fields, dim: int) -> RopeConfig:
        """From deepseek2's `rope.*` keys; `dim` is the number of rotated values."""
        theta = f.real("rope.freq_base", 10000.0)
        factor = f.real("rope.scaling.factor", 1.0) or 1.0
        kind = f.text("rope.scaling.type", "none" if factor == 1 else "linear")
        if kind == "none":
            return cls(theta, dim)
        if kind != "yarn" or f.real("rope.scaling.attn_factor", 1.0) != 1:
            raise other_rope(kind)
        # The file holds 0.1 * mscale_all_dim and no mscale: llama.cpp takes them as equal.
        mscale = round(f.real("rope.scaling.yarn_log_multiplier", 0.0) * 10, 6)
        return cls(
            theta=theta,
            dim=dim,
            factor=factor,
            original_context=f.integer(
                "rope.scaling.original_context_length", f.integer("context_length")
            ),
            beta_fast=f.real("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=f.real("rope.scaling.yarn_beta_slow", 1.0),
            mscale=mscale,
            mscale_all_dim=mscale,
        )

    @classmethod
    def from_hf(cls, f: Fields, dim: int) -> RopeConfig:
        """From `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`."""
        rope = (
            f.section("rope_parameters") or f.section("rope_scaling") or Fields({}, "config.json")
        )
        theta = rope.real("rope_theta", f.real("rope_theta", 10000.0))
        kind = rope.text("rope_type", rope.text("type", "default"))
        if kind == "default":
            return cls(theta, dim)
        plain = rope.get("attention_factor") is None and rope.boolean("truncate", True)
        if kind != "yarn" or not plain:
            raise other_rope(kind)
        context = f.integer("max_position_embeddings")
        return cls(
            theta=theta,
            dim=dim,
            factor=rope.real("factor"),
            original_context=rope.integer("original_max_position_embeddings", context),
            beta_fast=rope.real("beta_fast", 32.0),
            beta_slow=rope.real("beta_slow", 1.0),
            mscale=rope.real("mscale", 0.0),
            mscale_all_dim=rope.real("mscale_all_dim", 0.0),
        )


def other_rope(kind: str) -> Unsupported:
    """The refusal of a scaling that is not implemented."""
    return Unsupported(
        f"rotary embedding scaled by {kind!r:.60} with these options is not supported",
        "plain YaRN is supported, and in Llama and Qwen linear and Llama 3's scaling",
    )
