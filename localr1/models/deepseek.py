"""DeepSeek's mixture of experts (DeepSeekMoE, arXiv 2401.06066; V3, arXiv 2412.19437).

A feed-forward of a `Block` (transformer.py). What else is DeepSeek's own lies in attention.py (the
latent attention) and gate.py (which experts a token takes).
"""

from __future__ import annotations

from typing import Any

import torch

from cpu_experts import ExpertBank
from localr1.models.config import ModelConfig
from localr1.models.linear import Weights
from localr1.models.parts import Parts, Routed


def ffn_bank(weights: Weights, prefix: str, suffix: str = "") -> ExpertBank:
    """The gate, up and down matrices of an FFN; a dense one is a bank of one expert."""
    gate, up, down = (weights[f"{prefix}.ffn_{m}{suffix}.weight"] for m in ("gate", "up", "down"))
    return ExpertBank(gate, up, down)


class MoE:
    """Routed experts by the gate's choice, and the shared expert that every token takes."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, parts: Parts) -> None:
        prefix = f"blk.{layer}"
        self.parts = parts
        self.gate = parts.gate(config, weights, prefix)
        self.experts = parts.experts(layer, ffn_bank(weights, prefix, "_exps"))
        self.shared = None
        if config.n_shared_experts:
            self.shared = parts.mlp(ffn_bank(weights, prefix, "_shexp"))

    def __call__(self, normed: Any, x: torch.Tensor) -> Routed:
        """The shared expert works, and adds to `x`, while the routed ones do; these are still to be
        waited for.
        """
        ids, weights = self.gate(normed)
        shared_input = self.parts.activations(normed)
        routed = self.experts.start(shared_input, ids, weights)
        if self.shared is not None:
            add_to(x, self.shared(shared_input, x))
        return routed


def add_to(x: torch.Tensor, add: torch.Tensor | Routed | None) -> None:
    """Sum what a part left to be added, if it has not done so itself."""
    if isinstance(add, Routed):
        add = add.wait()
    if add is not None:
        x += add
