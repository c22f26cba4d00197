"""Rotary position embedding, with YaRN (arXiv 2309.00071) or factors on single frequencies.

A pair of values is one complex number turned by `position * inv_freq[i]`. DeepSeek's files and
GGUF's Llamas (rope type NORM, HF's `rope_interleave`) hold the pairs side by side; HF's Llamas and
all Qwens (rope type NEOX) hold all first halves before all second ones.
"""

from __future__ import annotations

import math

import torch

from localr1.models.rope_config import RopeConfig, yarn_mscale


def inverse_frequencies(rope: RopeConfig) -> torch.Tensor:
    """The angle per position of each pair: float64 `[rope.dim / 2]`.

    Fast pairs (more than `beta_fast` turns in the original context) keep their frequency, slow
    ones are divided by `factor`, a linear ramp lies between.
    """
    inv_freq = rope.theta ** (-torch.arange(0, rope.dim, 2, dtype=torch.float64) / rope.dim)
    if rope.divisors:
        inv_freq /= torch.tensor(rope.divisors, dtype=torch.float64)
    if rope.factor <= 1:
        return inv_freq

    def pair_with_turns(turns: float) -> float:
        ratio = rope.original_context / (turns * 2 * math.pi)
        return rope.dim * math.log(ratio) / (2 * math.log(rope.theta))

    low = max(math.floor(pair_with_turns(rope.beta_fast)), 0)
    high = min(math.ceil(pair_with_turns(rope.beta_slow)), rope.dim - 1)
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    return inv_freq * (1 - stretched) + inv_freq / rope.factor * stretched


def softmax_scale(rope: RopeConfig, head_dim: int) -> float:
    """`1 / sqrt(head_dim)` times the square of YaRN's temperature (DeepSeek-V2's code)."""
    mscale = yarn_mscale(rope.factor, rope.mscale_all_dim) if rope.mscale_all_dim else 1.0
    return mscale * mscale / math.sqrt(head_dim)


class Rope:
    """The rotations of all positions, made once: complex64 `[context, dim / 2]`."""

    def __init__(self, rope: RopeConfig, context: int) -> None:
        self.interleaved = rope.interleaved
        angle = torch.outer(torch.arange(context, dtype=torch.float64), inverse_frequencies(rope))
        size = self._size(rope)
        self.turns = torch.polar(torch.full_like(angle, size), angle).to(torch.complex64)
        self.pairs = torch.view_as_real(self.turns).numpy()  # [context, dim / 2, (cosine, sine)]

    @staticmethod
    def _size(rope: RopeConfig) -> float:
        """The length of each rotation: the ratio of YaRN's two temperatures (1 in DeepSeek's
        models).
        """
        if rope.attention_factor:
            return rope.attention_factor
        if rope.mscale and rope.mscale_all_dim:
            return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(
                rope.factor, rope.mscale_all_dim
            )
        return yarn_mscale(rope.factor, 1.0)

    def __call__(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """Turn `x` `[T, ..., dim]` float32, whose first row stands at position `start`."""
        turns = self.turns[start : start + x.shape[0]]
        if x.ndim == 3:
            turns = turns.unsqueeze(1)
        if self.interleaved:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # [T, ..., dim/2]
            return torch.view_as_real(pairs * turns).flatten(-2)
        turned = torch.complex(*x.chunk(2, dim=-1)) * turns
        return torch.cat((turned.real, turned.imag), dim=-1)
