"""DeepSeek-V2, V3 and R1: the model as the papers draw it (arXiv 2405.04434, 2412.19437).

Read from the bottom up: `Transformer` is an embedding, `Block`s and a head; a block is latent
attention (`MLA`) and a feed-forward, dense in the first layers, `MoE` in the others. Weights carry
their GGUF names. The multi-token-prediction layer behind the last block is left in the file for
speculative decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from cpu_experts import Activations, ExpertBank, matmul
from localr1.models.attention import MLA
from localr1.models.compiled import route_token
from localr1.models.config import ModelConfig
from localr1.models.experts import MLP, Experts
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Embedding, Linear, Weights, float_tensor
from localr1.models.norm import RMSNorm
from localr1.models.rope import Rope


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

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` `[T, hidden]` -> expert ids int32 `[T, k]` and weights float32 `[T, k]`."""
        if len(x) == 1:
            return self._one_token(x)
        c = self.config
        logits = linear(x, self.ffn_gate_inp)
        scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(-1)
        choice = scores + self.exp_probs_b
        if self.counted:
            choice = self._best_groups(choice)
        ids = choice.topk(c.n_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(-1, ids)
        if c.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids.int(), weights * c.routed_scaling_factor

    def _one_token(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one token, compiled (compiled.py)."""
        c = self.config
        logits = matmul(x.numpy(), self.router)[0]
        ids = torch.empty(1, c.n_experts_per_tok, dtype=torch.int32)
        weights = torch.empty(1, c.n_experts_per_tok)
        route_token()(
            logits, self.bias, c.scoring_func == "sigmoid", c.n_group, c.topk_group,
            self.counted, c.norm_topk_prob, c.routed_scaling_factor, ids.numpy(), weights.numpy(),
        )  # fmt: skip
        return ids, weights

    def _best_groups(self, choice: torch.Tensor) -> torch.Tensor:
        """Close all groups of experts but the `topk_group` best."""
        c = self.config
        groups = choice.unflatten(-1, (c.n_group, -1))  # [T, groups, experts of a group]
        best = groups.topk(self.counted, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
        closed = torch.ones(groups.shape[:2], dtype=torch.bool).scatter_(1, best, False)
        return groups.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)


class MoE:
    """Routed experts by the gate's choice, and the shared expert that every token takes."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.gate = Gate(config, weights, prefix)
        self.experts = Experts(_bank(weights, prefix, "_exps"))
        self.shared = MLP(_bank(weights, prefix, "_shexp")) if config.n_shared_experts else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        ids, weights = self.gate(x)
        activations = Activations(x.numpy())  # quantised once for all experts
        routed = self.experts(activations, ids, weights)
        return routed if self.shared is None else routed.add_(self.shared(activations))


def _bank(weights: Weights, prefix: str, suffix: str) -> ExpertBank:
    """The gate, up and down matrices of an FFN; a dense one is a bank of one expert."""
    gate, up, down = (weights[f"{prefix}.ffn_{m}{suffix}.weight"] for m in ("gate", "up", "down"))
    return ExpertBank(gate, up, down)


class Hidden(NamedTuple):
    """Hidden states between two blocks: `x` float32 `[T, hidden]`, and what is still to add."""

    x: torch.Tensor
    add: torch.Tensor | None = None


class Block:
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    The sums are made by the norms behind them, so that a device can do both in one step.
    """

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, rope: Rope) -> None:
        prefix = f"blk.{layer}"
        self.attn_norm = RMSNorm(weights[f"{prefix}.attn_norm.weight"], config.rms_norm_eps)
        self.attention = MLA(config, weights, layer, rope)
        self.ffn_norm = RMSNorm(weights[f"{prefix}.ffn_norm.weight"], config.rms_norm_eps)
        self.feed_forward: MoE | MLP
        if layer < config.n_dense_layers:
            self.feed_forward = MLP(_bank(weights, prefix, ""))
        else:
            self.feed_forward = MoE(config, weights, prefix)

    def __call__(self, hidden: Hidden, cache: KVCache) -> Hidden:
        """The tokens behind the committed ones, one layer on; `hidden.x` is updated in place."""
        x, add = hidden
        attended = self.attention(self.attn_norm(x, add), cache)
        return Hidden(x, self.feed_forward(self.ffn_norm(x, attended)))


class Transformer:
    """The whole model: token ids in, logits out."""

    def __init__(self, config: ModelConfig, weights: Weights, context: int) -> None:
        self.config = config
        self.token_embd = Embedding(weights["token_embd.weight"])
        rope = Rope(config.rope, context)
        self.blk = [Block(config, weights, i, rope) for i in range(config.n_layers)]
        self.output_norm = RMSNorm(weights["output_norm.weight"], config.rms_norm_eps)
        tied = "output.weight" not in weights
        self.output = Linear(weights["token_embd.weight" if tied else "output.weight"])

    def new_cache(self, context: int) -> KVCache:
        """An empty cache for `context` tokens."""
        return KVCache(
            len(self.blk), context, self.config.kv_lora_rank + self.config.qk_rope_head_dim
        )

    def layers(self, ids: list[int], cache: KVCache) -> Iterator[Hidden]:
        """Run `ids`, the tokens behind the committed ones, through the blocks: yields after each.

        Nothing is committed here.
        """
        with torch.inference_mode():
            hidden = Hidden(self.token_embd(ids))
        for block in self.blk:
            with torch.inference_mode():
                hidden = block(hidden, cache)
            yield hidden

    def head(self, hidden: Hidden, last: int = 0) -> torch.Tensor:
        """Behind the last block: logits float32 `[T, vocab]`, or of only the `last` tokens."""
        with torch.inference_mode():
            add = None if hidden.add is None else hidden.add[-last:]
            return self.output(self.output_norm(hidden.x[-last:], add))
