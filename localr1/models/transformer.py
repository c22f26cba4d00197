"""The whole model as the papers draw it: DeepSeek-V2, V3 and R1, and dense Llama, Qwen2 and Qwen3.

Read from the bottom up: `Transformer` is an embedding, `Block`s and a head; a block is attention
and a feed-forward. DeepSeek attends over latents (attention.py), and all its layers but the first
are mixtures of experts (deepseek.py); the others share keys and values among groups of heads
(gqa.py), and every token takes the whole of their feed-forwards. Weights carry their GGUF names.
The multi-token-prediction layer behind DeepSeek's last block is left in the file for speculative
decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from localr1.models.architecture import Config
from localr1.models.cpu import CpuParts
from localr1.models.deepseek import MoE, ffn_bank
from localr1.models.dense_config import DenseConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights
from localr1.models.parts import Parts, Routed


class Hidden(NamedTuple):
    """Hidden states between two blocks: `x` float32 `[T, hidden]`, and what is still to add.

    That may be still at work: whoever needs it waits, and what is done until then hides its time.
    """

    x: torch.Tensor
    add: torch.Tensor | Routed | None = None

    def arrived(self) -> torch.Tensor | None:
        """What is to add, `[T, hidden]`, waited for."""
        return self.add.wait() if isinstance(self.add, Routed) else self.add

    def whole(self) -> torch.Tensor:
        """`x` with what is to add, summed in place."""
        add = self.arrived()
        return self.x if add is None else self.x.add_(add)


class Block:
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    The sums are made by the norms behind them, so that a device can do both in one step.
    """

    def __init__(self, config: Config, weights: Weights, layer: int, parts: Parts) -> None:
        prefix, eps = f"blk.{layer}", config.rms_norm_eps
        self.parts = parts
        self.attn_norm = parts.norm(weights[f"{prefix}.attn_norm.weight"], eps)
        self.attention = parts.attention(config, weights, layer)
        self.ffn_norm = parts.norm(weights[f"{prefix}.ffn_norm.weight"], eps)
        self.feed_forward: Any  # MoE, or the part's MLP
        if isinstance(config, DenseConfig) or layer < config.n_dense_layers:
            self.feed_forward = parts.mlp(ffn_bank(weights, prefix), layer)
        else:
            self.feed_forward = MoE(config, weights, layer, parts)

    def __call__(self, hidden: Hidden, cache: KVCache) -> Hidden:
        """The tokens behind the committed ones, one layer on; `hidden.x` is updated in place."""
        x = hidden.x
        attended = self.attention(self.attn_norm(x, hidden.arrived()), x, cache)
        return Hidden(x, self.feed_forward(self.ffn_norm(x, attended), x))


class Transformer:
    """The whole model: token ids in, logits out. `parts` decides where it runs.

    `cpu_layers` is how many of the first layers the CPU runs; a GPU may run the others.
    """

    def __init__(
        self, config: Config, weights: Weights, context: int, parts: Parts | None = None
    ) -> None:
        self.config = config
        self.parts: Parts = CpuParts(config, context) if parts is None else parts
        layers = range(config.n_layers)
        self.blk = [Block(config, weights, i, self.parts.of_layer(i)) for i in layers]
        self.cpu_layers = sum(isinstance(block.parts, CpuParts) for block in self.blk)
        self.output_norm = self.parts.norm(weights["output_norm.weight"], config.rms_norm_eps)
        tied = "output.weight" not in weights
        embedding = weights["token_embd.weight"]
        self.output = self.parts.linear(embedding if tied else weights["output.weight"])
        self.token_embd = self.parts.embedding(embedding, self.output if tied else None)

    def new_cache(self, context: int) -> KVCache:
        """An empty cache for `context` tokens."""
        return self.parts.new_cache(context)

    def layers(self, ids: list[int], cache: KVCache) -> Iterator[Hidden]:
        """Run `ids`, the tokens behind the committed ones, through the blocks: yields after each.

        Nothing is committed here.
        """
        with torch.inference_mode():
            hidden = Hidden(self.token_embd(ids))
        parts: Parts | None = None
        for block in self.blk:
            with torch.inference_mode():
                if block.parts is not parts:  # till here the tokens were in RAM
                    parts = block.parts
                    hidden = Hidden(parts.hidden(hidden.whole(), cache))
                hidden = block(hidden, cache)
            yield hidden

    def head(self, hidden: Hidden, last: int = 0) -> torch.Tensor:
        """Behind the last block: logits float32 `[T, vocab]`, or of only the `last` tokens."""
        with torch.inference_mode():
            add = hidden.arrived()
            add = None if add is None else add[-last:]
            return self.output(self.output_norm(hidden.x[-last:], add))
