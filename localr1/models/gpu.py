"""The parts of a model on an NVIDIA GPU, its routed experts in RAM (parts.py says what a part is).

Up to 8 tokens go through the fused kernels that decoding needs, each of which can be captured into
a graph; prompts through tensor-core products. The routed experts of few tokens are asked through
the mailbox where one is running (`GpuParts.open_mailbox`), so that no Python runs between the GPU
and them; else, and for prompts, activations are copied to RAM and answers back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cpu_experts import ExpertBank, QuantTensor, moe_forward
from cpu_experts.mailbox import Mailbox
from localr1.gpu import mla, mla_prefill
from localr1.gpu.activation import swiglu
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.launch import architecture
from localr1.gpu.linear import expanded, gated_gemv, gemv, linear, matmul
from localr1.gpu.mailbox import Handoff, pinned
from localr1.gpu.norm import rms_norm
from localr1.gpu.rope import rotate
from localr1.gpu.router import route
from localr1.gpu.weights import GpuWeight, upload
from localr1.models.attention import HeadProjections
from localr1.models.config import ModelConfig
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights, float_tensor
from localr1.models.rope import Rope, softmax_scale

FEW = 8  # tokens up to which the decoding kernels are used
_PIECE = 2048  # tokens of a prompt that a part takes at a time: 300 MB in R1's dense layers


class GpuParts:
    """Uploads weights as parts are made; `report` gets the bytes that have been sent."""

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        device: str = "cuda",
        report: Callable[[int], None] = lambda sent: None,
    ) -> None:
        self.config, self.device, self.report = config, torch.device(device), report
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.turns = torch.from_numpy(Rope(config.rope, context).pairs).to(device)
        self.arch = architecture(self.device.index or 0) if self.device.type == "cuda" else 90
        self.banks: list[ExpertBank | None] = [None] * config.n_layers
        self.handoff: Handoff | None = None

    @property
    def multiprocessors(self) -> int:
        """Of the GPU; of an H100 in Triton's interpreter."""
        if self.device.type != "cuda":
            return 132
        return int(torch.cuda.get_device_properties(self.device).multi_processor_count)

    def upload(self, *weights: QuantTensor, stacked: bool = False) -> GpuWeight:
        """Weights of one format, joined (localr1.gpu.weights)."""
        return upload(weights, self.device, stacked=stacked, report=self.report)

    def linear(self, weight: QuantTensor) -> GpuLinear:
        return GpuLinear(self.upload(weight))

    def norm(self, weight: QuantTensor, eps: float) -> GpuNorm:
        return GpuNorm(float_tensor(weight).flatten().to(self.device), eps)

    def gate(self, config: ModelConfig, weights: Weights, prefix: str) -> GpuGate:
        router = float_tensor(weights[f"{prefix}.ffn_gate_inp.weight"]).to(self.device)
        name = f"{prefix}.exp_probs_b.bias"
        bias = float_tensor(weights[name]).flatten().to(self.device) if name in weights else None
        return GpuGate(config, router, bias)

    def mlp(self, bank: ExpertBank) -> GpuMLP:
        return GpuMLP(self, bank)

    def attention(self, config: ModelConfig, weights: Weights, layer: int) -> GpuMLA:
        return GpuMLA(self, weights, layer)

    def experts(self, layer: int, bank: ExpertBank) -> GpuExperts:
        self.banks[layer] = bank
        return GpuExperts(self, layer, bank)

    def new_cache(self, context: int) -> KVCache:
        width = self.config.kv_lora_rank + self.config.qk_rope_head_dim
        return KVCache(self.config.n_layers, context, width, torch.bfloat16, self.device)

    def hidden(self, rows: torch.Tensor, cache: KVCache) -> torch.Tensor:
        self.position.fill_(cache.length)
        return rows.to(self.device)

    def activations(self, normed: torch.Tensor) -> torch.Tensor:
        return normed

    def open_mailbox(self) -> Mailbox:
        """Start the thread that answers the GPU; from here on few tokens are asked through it."""
        c = self.config
        memory = pinned(Mailbox.size(c.hidden_size, c.n_experts_per_tok, FEW))
        box = Mailbox(self.banks, c.hidden_size, c.n_experts_per_tok, FEW, memory)
        box.start()
        self.handoff = Handoff(box, self.device)
        return box


class GpuLinear:
    """`y = x @ weight.T`, in float32 sums of exact weights."""

    def __init__(self, weight: GpuWeight) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` float32 `[T, cols]` -> float32 `[T, rows]`."""
        return linear(x, self.weight)


class GpuNorm:
    """RMSNorm; the addend may lie in pinned memory."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, add)


class GpuGate:
    """The router; see gate.py."""

    def __init__(
        self, config: ModelConfig, router: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self.config, self.router, self.bias = config, router, bias

    def __call__(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = len(normed), self.config.n_experts_per_tok
        ids = torch.empty(shape, dtype=torch.int32, device=normed.device)
        weights = torch.empty(shape, dtype=torch.float32, device=normed.device)
        scale = self.config.routed_scaling_factor
        route(normed, self.router, self.bias, self.config, scale, ids, weights)
        return ids, weights


class GpuMLP:
    """A dense FFN or the shared expert; its answer goes straight into the residual stream."""

    def __init__(self, parts: GpuParts, bank: ExpertBank) -> None:
        gate, up, down = (_matrix(bank_part) for bank_part in (bank.gate, bank.up, bank.down))
        self.joined = gate.format.name == up.format.name
        both = [(gate, up)] if self.joined else [(gate,), (up,)]
        self.gate_up = [parts.upload(*pair, stacked=self.joined) for pair in both]
        self.down = parts.upload(down)

    def __call__(self, normed: torch.Tensor, x: torch.Tensor) -> None:
        for first in range(0, len(x), _PIECE):
            piece = slice(first, first + _PIECE)
            linear(self._gated(normed[piece]), self.down, out=x[piece], add=x[piece])

    def _gated(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate . x) * (up . x)."""
        if not self.joined:
            return swiglu(*(linear(x, weight) for weight in self.gate_up))
        (weight,) = self.gate_up
        if len(x) <= FEW:
            return gated_gemv(x, weight)
        both = matmul(x.unsqueeze(1).expand(-1, 2, -1), weight)
        return swiglu(both[:, 0], both[:, 1])


def _matrix(weight: QuantTensor) -> QuantTensor:
    """A bank of one as a matrix."""
    return QuantTensor(weight.format, weight.shape[-2:], weight.parts, weight.scales)


class Copied(NamedTuple):
    """A question whose copies to RAM are on their way: the CPU computes when it is waited for."""

    bank: ExpertBank
    copies: tuple[torch.Tensor, ...]
    arrived: torch.cuda.Event | None
    device: torch.device

    def wait(self) -> torch.Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        x, ids, weights = (copy.numpy() for copy in self.copies)
        return torch.from_numpy(moe_forward(x, ids, weights, self.bank)).to(self.device)


class Posted(NamedTuple):
    """A question in the mailbox."""

    handoff: Handoff
    n_tokens: int

    def wait(self) -> torch.Tensor:
        self.handoff.wait()
        return self.handoff.out[: self.n_tokens]


class GpuExperts:
    """Routed experts in RAM, asked from the GPU."""

    def __init__(self, parts: GpuParts, layer: int, bank: ExpertBank) -> None:
        self.parts, self.layer, self.bank = parts, layer, bank

    def start(
        self, normed: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> Copied | Posted:
        handoff = self.parts.handoff
        if handoff is not None and len(normed) <= FEW:
            handoff.post(self.layer, normed, ids, weights)
            return Posted(handoff, len(normed))
        copies = tuple(_to_ram(tensor) for tensor in (normed, ids, weights))
        arrived = torch.cuda.Event(blocking=True) if normed.is_cuda else None
        if arrived is not None:
            arrived.record()
        return Copied(self.bank, copies, arrived, normed.device)


def _to_ram(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class GpuMLA:
    """Latent attention (attention.py), absorbed for few tokens and expanded for prompts."""

    def __init__(self, parts: GpuParts, weights: Weights, layer: int) -> None:
        c, prefix = parts.config, f"blk.{layer}"
        self.parts, self.config, self.layer = parts, c, layer
        first = "attn_q_a" if c.q_lora_rank else "attn_q"
        inputs = [weights[f"{prefix}.{name}.weight"] for name in (first, "attn_kv_a_mqa")]
        self.joined = inputs[0].format.name == inputs[1].format.name
        self.inputs = [parts.upload(*inputs)] if self.joined else [*map(parts.upload, inputs)]
        self.widths = [weight.rows for weight in inputs]
        self.q_b = None
        if c.q_lora_rank:
            self.q_norm = parts.norm(weights[f"{prefix}.attn_q_a_norm.weight"], c.rms_norm_eps)
            self.q_b = parts.upload(weights[f"{prefix}.attn_q_b.weight"])
        norm = weights[f"{prefix}.attn_kv_a_norm.weight"]
        self.kv_norm = float_tensor(norm).flatten().to(parts.device)
        heads = HeadProjections(c, weights, prefix)
        self.k = parts.upload(heads.k if heads.k_transposed else _transposed(heads.k))
        self.v = parts.upload(heads.v)
        self.output = parts.upload(weights[f"{prefix}.attn_output.weight"])
        self.scale = softmax_scale(c.rope, c.qk_nope_head_dim + c.qk_rope_head_dim)

    def __call__(self, normed: torch.Tensor, x: torch.Tensor, cache: KVCache) -> None:
        if len(normed) <= FEW:
            queries, rotated = self._rotated(normed, cache, torch.float32)
            values = self._absorbed(queries, rotated, cache)
            linear(values.flatten(1), self.output, out=x, add=x)
            return
        for first in range(0, len(normed), _PIECE):
            piece, start = slice(first, first + _PIECE), cache.length + first
            self.parts.position.fill_(start)
            queries, rotated = self._rotated(normed[piece], cache, torch.bfloat16)
            values = self._expanded(queries, rotated, cache, start)
            linear(values.flatten(1), self.output, out=x[piece], add=x[piece])

    def _projected(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries `[T, heads * (nope + rope)]` and latents with their keys `[T, rank + rope]`."""
        parts = [linear(normed, weight) for weight in self.inputs]
        queries, kv = parts[0].split(self.widths, dim=-1) if self.joined else parts
        if self.q_b is None:
            return queries.contiguous(), kv
        return linear(self.q_norm(queries), self.q_b), kv

    def _rotated(
        self, normed: torch.Tensor, cache: KVCache, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the cache's rows at the position; queries `[T, heads, nope]` in `dtype`, and
        rotated ones `[T, heads, rope]` in bf16.
        """
        queries, kv = self._projected(normed)
        c, device = self.config, queries.device
        shape = len(queries), c.n_heads
        q_nope = torch.empty(*shape, c.qk_nope_head_dim, dtype=dtype, device=device)
        q_rope = torch.empty(*shape, c.qk_rope_head_dim, dtype=torch.bfloat16, device=device)
        rotate(
            queries, kv, self.kv_norm, c.rms_norm_eps, self.parts.turns, self.parts.position,
            self._rows(cache), q_nope, q_rope,
        )  # fmt: skip
        return q_nope, q_rope

    def _rows(self, cache: KVCache) -> CacheRows:
        return CacheRows(cache.rows[self.layer])

    def _absorbed(self, q_nope: torch.Tensor, q_rope: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """All heads over the latents: `[T, heads, v_head_dim]`."""
        shape = (*q_nope.shape[:2], self.config.kv_lora_rank)
        latent = torch.empty(shape, dtype=torch.bfloat16, device=q_nope.device)
        gemv(q_nope, self.k, out=latent)
        splits = mla.splits_for(shape[0] * shape[1], self.parts.multiprocessors)
        attended = mla.attend(
            latent, q_rope, self._rows(cache), self.parts.position, self.scale, self.parts.arch,
            splits,
        )  # fmt: skip
        return gemv(attended, self.v)

    def _expanded(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, cache: KVCache, start: int
    ) -> torch.Tensor:
        """Each head over keys and values of its own: `[T, heads, v_head_dim]`."""
        keys, values = expanded(self.k), expanded(self.v)  # [heads, rank, nope], [heads, v, rank]

        def expand(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (latent @ keys).transpose(0, 1), (latent @ values.mT).transpose(0, 1)

        return mla_prefill.attend(
            q_nope, q_rope, self._rows(cache), start, expand, self.config.v_head_dim,
            self.scale, self.parts.arch,
        )  # fmt: skip


def _transposed(k: QuantTensor) -> QuantTensor:
    """Keys `[heads, nope, rank]` of an old file the other way round, in float16.

    Quantised blocks run along the rows: they cannot be turned without being undone.
    """
    turned = k.dequantize().transpose(0, 2, 1).astype("float16")
    return QuantTensor("F16", turned.shape, (turned.copy().view("uint8"),))
