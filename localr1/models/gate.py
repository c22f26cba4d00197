"""The router: which experts a token takes (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from localr1.models.config import ModelConfig
from localr1.models.linear import Weights, float_tensor


class Gate:
    """The router: which experts a token takes, and with which weights.

    V3 (`noaux_tc`): sigmoid scores; a bias, learned for balance, joins the choice but not the
    weights; a group counts as its two best. V2: softmax scores; a group counts as its best one.
    """

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.config = config
        self.router = weights[f"{prefix}.ffn_gate_inp.weight"]
        self.ffn_gate_inp = float_tensor(self.router)
        bias = f"{prefix}.exp_probs_b.bias"
        self.exp_probs_b = torch.zeros(config.n_routed_experts)
        if bias in weights:
            self.exp_probs_b = float_tensor(weights[bias]).flatten()
        self.bias = self.exp_probs_b.numpy()
        self.counted = 0  # the experts that stand for a group, where groups are closed at all
        if config.topk_method != "greedy" and config.n_group > config.topk_group:
            self.counted = 2 if config.topk_method == "noaux_tc" else 1

    def __call__(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`normed` `[T, hidden]` -> expert ids int32 `[T, k]` and weights float32 `[T, k]`."""
        c = self.config
        logits = linear(normed, self.ffn_gate_inp)
        scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(-1)
        choice = scores + self.exp_probs_b
        if self.counted:
            choice = self._best_groups(choice)
        ids = choice.topk(c.n_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(-1, ids)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids.int(), weights * c.routed_scaling_factor

    def _best_groups(self, choice: torch.Tensor) -> torch.Tensor:
        """Close all groups of experts but the `topk_group` best."""
        c = self.config
        groups = choice.unflatten(-1, (c.n_group, -1))  # [T, groups, experts of a group]
        best = groups.topk(self.counted, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
        closed = torch.ones(groups.shape[:2], dtype=torch.bool).scatter_(1, best, False)
        return groups.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)
