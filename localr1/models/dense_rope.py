"""The rotary embedding of dense models, from GGUF or config.json: plain, linear, Llama 3's, YaRN.

Linear scaling and Llama 3's both divide the frequency of each pair; a GGUF holds Llama 3's divisors
as the tensor `rope_freqs.weight`, a folder the numbers that they follow from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from localr1.models.fields import Fields, require
from localr1.models.rope_config import RopeConfig, other_rope, yarn_mscale


def rope_from_gguf(f: Fields, dim: int, interleaved: bool, freqs: Sequence[float]) -> RopeConfig:
    """From the `rope.*` keys; `freqs`: the values of `rope_freqs.weight`, if the file has it.

    Raises Unsupported (another scaling), BadFile.
    """
    theta = f.real("rope.freq_base", 10000.0)
    factor = f.real("rope.scaling.factor", f.real("rope.scale_linear", 1.0)) or 1.0
    kind = f.text("rope.scaling.type", "none" if factor == 1 else "linear")
    if kind not in ("none", "linear", "yarn") or (freqs and kind != "none" and factor != 1):
        raise other_rope(kind)
    if kind == "yarn":
        if f.real("rope.scaling.yarn_ext_factor", 1.0) != 1:
            raise other_rope(kind)
        own = yarn_mscale(factor, 1.0) if math.isfinite(factor) else 0.0
        return RopeConfig(
            theta=theta,
            dim=dim,
            factor=factor,
            original_context=f.integer(
                "rope.scaling.original_context_length", f.integer("context_length")
            ),
            beta_fast=f.real("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=f.real("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=own * f.real("rope.scaling.attn_factor", 1.0),
            interleaved=interleaved,
        )
    divisors = tuple(freqs)
    if kind == "linear" and factor != 1:
        divisors = _all_equal(factor, dim)
    return RopeConfig(theta, dim, interleaved=interleaved, divisors=divisors)


def rope_from_hf(f: Fields, dim: int) -> RopeConfig:
    """From `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`.

    Raises Unsupported (another scaling), BadFile.
    """
    rope = f.section("rope_parameters") or f.section("rope_scaling") or Fields({}, "config.json")
    theta = rope.real("rope_theta", f.real("rope_theta", 10000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if rope.real("partial_rotary_factor", f.real("partial_rotary_factor", 1.0)) != 1:
        raise other_rope("partial_rotary_factor")
    if kind == "default":
        return RopeConfig(theta, dim, interleaved=False)
    factor = rope.real("factor")
    if kind == "linear":
        return RopeConfig(theta, dim, interleaved=False, divisors=_all_equal(factor, dim))
    context = rope.integer("original_max_position_embeddings", f.integer("max_position_embeddings"))
    if kind == "llama3":
        slow, fast = rope.real("low_freq_factor"), rope.real("high_freq_factor")
        divisors = _llama3(theta, dim, factor, context, slow, fast)
        return RopeConfig(theta, dim, interleaved=False, divisors=divisors)
    if kind != "yarn" or rope.get("mscale") is not None or not rope.boolean("truncate", True):
        raise other_rope(kind)
    # `attn_factor` is DeepSeek's own key, in R1-0528-Qwen3-8B: times YaRN's temperature, as GGUF's.
    # It undoes that temperature. transformers does not know it.
    own = yarn_mscale(factor, 1.0) * rope.real("attn_factor", 1.0)
    return RopeConfig(
        theta=theta,
        dim=dim,
        factor=factor,
        original_context=context,
        beta_fast=rope.real("beta_fast", 32.0),
        beta_slow=rope.real("beta_slow", 1.0),
        attention_factor=rope.real("attention_factor", own),
        interleaved=False,
    )


def _all_equal(factor: float, dim: int) -> tuple[float, ...]:
    return (factor,) * (dim // 2)


def _llama3(
    theta: float, dim: int, factor: float, context: int, slow: float, fast: float
) -> tuple[float, ...]:
    """Llama 3.1's divisors: `factor` for pairs that turn fewer than `slow` times in the original
    `context`, 1 for those that turn more than `fast` times, and a ramp of frequencies between.
    """
    require(theta > 1 and factor >= 1 and fast > slow > 0, "the rope scaling is out of order")
    divisors = []
    for pair in range(dim // 2):
        turns = context * theta ** (-2 * pair / dim) / (2 * math.pi)
        kept = min(max((turns - slow) / (fast - slow), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)
