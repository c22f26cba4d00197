"""One token on the CPU as one compiled call: the model's parts, written out as a program.

The counterpart of graph.py. A program (cpu_experts/program.py) holds every step of every layer with
the addresses of its weights and rows, so no Python runs between the embedding and the logits, or,
where a GPU runs the last layers, its first one. What differs from token to token, its number and
its position, lies in two words. The model's own Python form stays the definition, and what reads
prompts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cpu_experts import ExpertBank, QuantTensor, grouped_attention, latent_attention, routing
from cpu_experts.activations import preparing
from cpu_experts.cpu import tier
from cpu_experts.kernels.registry import DEQUANT, kernel_address
from cpu_experts.token_program import Part, Row, TokenProgram, bits
from localr1.errors import Unsupported
from localr1.models.attention import MLA
from localr1.models.experts import MLP
from localr1.models.gate import Gate
from localr1.models.gqa import GQA
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Embedding
from localr1.models.transformer import Transformer


class CpuGraph:
    """`step(token)` for those layers of a model that the CPU runs, over one cache."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        c = model.config
        self.cache = cache
        self._program = program = TokenProgram()
        self._words = np.zeros(2, dtype=np.int64)
        self._token = program.array(self._words)
        self._position = self._token + 8
        hidden = torch.empty(1, c.hidden_size)
        self._x = Row("x", program.array(hidden.numpy()), c.hidden_size)
        assert isinstance(model.token_embd, Embedding)
        program.embed(model.token_embd.weight, self._token, self._x)
        add: Row | None = None
        for layer, block in enumerate(model.blk[: model.cpu_layers]):
            normed = self._norm(block.attn_norm, self._x, add, "normed")
            attended = self._attention(block.attention, layer, normed)
            normed = self._norm(block.ffn_norm, self._x, attended, "normed")
            add = self._feed_forward(block.feed_forward, normed)
        assert add is not None
        if model.cpu_layers == len(model.blk):
            self._out = self._head(model, add)
        else:
            program.add_to(self._x, add)
            self._out = hidden

    def step(self, token: int) -> torch.Tensor:
        """Run one token behind the committed ones, without committing it: logits `[1, vocab]`, or
        the hidden state `[1, hidden]` that the next layer begins with.

        The next call overwrites them.
        """
        self._words[0], self._words[1] = token, self.cache.length
        self._program.run()
        return self._out

    def _head(self, model: Transformer, add: Row) -> torch.Tensor:
        normed = self._norm(model.output_norm, self._x, add, "normed")
        logits = torch.empty(1, model.config.vocab_size)
        row = Row("logits", self._program.array(logits.numpy()), model.config.vocab_size)
        output: Any = model.output
        self._program.product([Part(output.weight, normed, row)])
        return logits

    def _norm(self, norm: Any, x: Row, add: Row | None, name: str) -> Row:
        out = self._program.row(name, x.cols)
        self._program.norm(x, add, norm.values, norm.eps, out)
        return out

    def _attention(self, attention: Any, layer: int, normed: Row) -> Row:
        program = self._program
        if isinstance(attention, MLA):
            values = self._latent(attention, layer, normed)
        else:
            values = self._grouped(attention, layer, normed)
        out = program.row("attended", normed.cols)
        program.product([Part(attention.attn_output.weight, values, out)])
        return out

    def _grouped(self, gqa: GQA, layer: int, normed: Row) -> Row:
        """Heads of queries that share heads of keys and values -> the heads' values."""
        c, program, d = gqa.config, self._program, gqa.config.head_dim
        widths = (c.n_heads * d, c.n_kv_heads * d, c.n_kv_heads * d)
        q, k, v = (program.row(name, width) for name, width in zip("qkv", widths, strict=True))
        weights = (gqa.attn_q.weight, gqa.attn_k.weight, gqa.attn_v.weight)
        *biases, q_norm, k_norm = (values if len(values) else None for values in gqa.vectors)
        program.product(
            [
                Part(weight, normed, out, bias)
                for weight, out, bias in zip(weights, (q, k, v), biases, strict=True)
            ]
        )
        cached, turns = self._cached(layer), program.array(gqa.rope.pairs)
        gains = [0 if norm is None else program.array(norm) for norm in (q_norm, k_norm)]
        program.step(
            grouped_attention.rotate_heads, q.address, k.address, v.address, c.n_heads,
            c.n_kv_heads, d, *gains, bits(c.rms_norm_eps), turns, int(gqa.rope.interleaved),
            self._position, cached,
        )  # fmt: skip
        group = c.n_heads // c.n_kv_heads
        share = max(1, min(4, group, c.n_heads // (4 * program.threads)))
        items = c.n_kv_heads * -(-group // share)
        values = program.row("values", c.n_heads * d)
        program.step(
            grouped_attention.attend_heads, share, group, q.address, c.n_kv_heads, d,
            self._position, cached, bits(gqa.scale), values.address, items=program.words([items]),
        )  # fmt: skip
        return values

    def _cached(self, layer: int) -> int:
        rows, _ = self.cache.of(layer)
        return self._program.array(rows.numpy())

    def _latent(self, mla: MLA, layer: int, normed: Row) -> Row:
        """Heads over the latents -> the heads' values."""
        c, program = mla.config, self._program
        kv = program.row("kv", c.kv_lora_rank + c.qk_rope_head_dim)
        parts, queried = [Part(mla.attn_kv_a_mqa.weight, normed, kv)], normed
        if mla.attn_q_a is not None:
            queried = program.row("q_a", c.q_lora_rank)
            parts.append(Part(mla.attn_q_a.weight, normed, queried))
        program.product(parts)
        if mla.attn_q_a is not None:
            queried = self._norm(mla.attn_q_a_norm, queried, None, "q_a normed")
        cached, turns = self._cached(layer), program.array(mla.rope.pairs)
        program.step(
            latent_attention.keep_latent, kv.address, program.array(mla.attn_kv_a_norm.values),
            c.kv_lora_rank, c.qk_rope_head_dim, bits(c.rms_norm_eps), turns, self._position, cached,
        )  # fmt: skip
        return self._heads(mla, queried, turns, cached)

    def _heads(self, mla: MLA, queried: Row, turns: int, cached: int) -> Row:
        """The heads' values, as many heads at a time as keep all threads busy."""
        c, program, heads = mla.config, self._program, mla.heads
        q, k, v = mla.attn_q_b.weight, heads.k, heads.v
        program.keep((q, k, v))
        share = max(1, min(4, c.n_heads // (4 * program.threads)))
        widest = max(c.kv_lora_rank, c.qk_nope_head_dim)
        if 4 * (2 * share + 6) * (widest + c.qk_rope_head_dim + 256) > latent_attention.LOCAL_BYTES:
            raise Unsupported(f"a latent of {c.kv_lora_rank:,} values is not supported", "")
        values = program.row("values", c.n_heads * c.v_head_dim)
        dequant = 0 if heads.k_transposed else kernel_address(k.format, DEQUANT, tier())
        program.step(
            latent_attention.attend_latents,
            share, c.n_heads, q.address, program.table(queried, q, program.terms(q)),
            program.terms(q), c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank, turns,
            self._position, cached, bits(mla.scale), k.address, program.terms(k), dequant,
            v.address, program.terms(v), values.address, preparing(),
            items=program.words([-(-c.n_heads // share)]),
        )  # fmt: skip
        return values

    def _feed_forward(self, ffn: Any, normed: Row) -> Row:
        program = self._program
        out = program.row("ffn", normed.cols)
        if isinstance(ffn, MLP):
            ids = program.array(np.zeros(1, dtype=np.int32))
            weights = program.array(np.ones(1, dtype=np.float32))
            program.experts(ffn.bank, normed, ids, weights, 1, out)
            return out
        bank = _joined(ffn.experts.bank, ffn.shared.bank) if ffn.shared is not None else None
        k = ffn.gate.config.n_experts_per_tok
        chosen = program.array(np.full(k + 1, ffn.experts.bank.n_experts, dtype=np.int32))
        weights = program.array(np.ones(k + 1, dtype=np.float32))
        self._route(ffn.gate, normed, chosen, weights)
        if bank is not None:
            program.experts(bank, normed, chosen, weights, k + 1, out)
            return out
        if ffn.shared is not None:
            program.add_to(self._x, self._feed_forward(ffn.shared, normed))
        program.experts(ffn.experts.bank, normed, chosen, weights, k, out)
        return out

    def _route(self, gate: Gate, normed: Row, ids: int, weights: int) -> None:
        c, program = gate.config, self._program
        logits = program.row("router", c.n_routed_experts)
        program.product([Part(gate.router, normed, logits)])
        program.step(
            routing.route, logits.address, program.array(gate.bias), c.n_routed_experts,
            int(c.scoring_func == "sigmoid"), c.n_group, c.topk_group, gate.counted,
            int(c.norm_topk_prob), bits(c.routed_scaling_factor), c.n_experts_per_tok, ids, weights,
        )  # fmt: skip


def _joined(routed: ExpertBank, shared: ExpertBank) -> ExpertBank | None:
    """The shared expert as the last of the routed ones, where formats and sizes are theirs."""
    pairs = [(getattr(routed, name), getattr(shared, name)) for name in ("gate", "up", "down")]
    if any(a.format != b.format or (a.rows, a.cols) != (b.rows, b.cols) for a, b in pairs):
        return None
    return ExpertBank(*(_stacked(a, b) for a, b in pairs))


def _stacked(stack: QuantTensor, one: QuantTensor) -> QuantTensor:
    """A stack with another matrix behind its last, without a copy."""
    parts = [part for whole in stack.parts for part in _matrices(whole, stack)]
    scales = [scale for whole in stack.scales for scale in _matrices(whole, stack)]
    shape = (stack.count + 1, stack.rows, stack.cols)
    return QuantTensor(stack.format, shape, (*parts, *one.parts), (*scales, *one.scales))


def _matrices(whole: np.ndarray, stack: QuantTensor) -> np.ndarray:
    """The bytes, or scales, of each matrix in one part of a stack."""
    return whole.reshape(stack.count // len(stack.parts), -1)
