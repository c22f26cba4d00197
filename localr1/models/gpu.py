"""The parts of a model on an NVIDIA GPU (parts.py says what a part is).

Up to 8 tokens go through the fused kernels that decoding needs, each of which can be captured into
a graph; prompts through tensor-core products. What `on_gpu` says no to stays in RAM: routed experts
and dense FFNs (gpu_experts.py), or the first layers as a whole, which the CPU runs (cpu.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cpu_experts import ExpertBank, QuantTensor
from localr1.gpu.activation import swiglu
from localr1.gpu.activations import Activations, empty
from localr1.gpu.driver import GpuError
from localr1.gpu.failures import told
from localr1.gpu.launch import architecture
from localr1.gpu.linear import gated_gemv, linear, matmul
from localr1.gpu.norm import rms_norm
from localr1.gpu.router import route
from localr1.gpu.sizes import PIECE
from localr1.gpu.tiles import FEW
from localr1.gpu.weights import GpuWeight, upload
from localr1.models import cache_layout
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.cpu import CpuParts
from localr1.models.dense_config import DenseConfig
from localr1.models.gpu_embedding import GpuEmbedding
from localr1.models.gpu_experts import RamExperts, RamMLP, Stage, VramExperts
from localr1.models.gpu_gqa import GpuGQA
from localr1.models.gpu_mla import GpuMLA
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Embedding, Weights, float_tensor
from localr1.models.rope import Rope


def _not_routed(name: str) -> bool:
    return "_exps." not in name


def lies_whole(config: Config, on_gpu: Callable[[str], bool]) -> bool:
    """Whether the GPU has all layers, so that nobody else computes; by the names of weights."""
    dense = config.n_layers if isinstance(config, DenseConfig) else config.n_dense_layers
    return all(
        on_gpu(f"blk.{i}.attn_output.weight")
        and on_gpu(f"blk.{i}.ffn_up{'' if i < dense else '_exps'}.weight")
        for i in range(config.n_layers)
    )


class GpuParts:
    """Uploads weights as parts are made; `report` gets the bytes that have been sent.

    `on_gpu` tells by a weight's name whether it is to lie there. Routed experts and dense FFNs need
    not, and the first layers need not: where attention is not, nothing of a layer is. `cache` is
    one of cache_layout.CACHES.
    """

    def __init__(
        self,
        config: Config,
        context: int,
        device: str = "cuda",
        on_gpu: Callable[[str], bool] = _not_routed,
        report: Callable[[int], None] = lambda sent: None,
        cache: str = cache_layout.IN_16_BITS,
    ) -> None:
        self.cache_layout = cache_layout.on_gpu(config, cache)
        self.config, self.device = config, torch.device(device)
        self.on_gpu, self.report = on_gpu, report
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.turns = torch.from_numpy(Rope(config.rope, context).pairs).to(device)
        self.arch = architecture(self.device.index or 0) if self.device.type == "cuda" else 90
        self.stage = Stage(config, self.device)
        there = [on_gpu(f"blk.{i}.attn_output.weight") for i in range(config.n_layers)]
        self._cpu_layers = there.index(True)
        self._cpu = CpuParts(config, context) if self._cpu_layers else None

    def of_layer(self, layer: int) -> GpuParts | CpuParts:
        if self._cpu is not None and layer < self._cpu_layers:
            return self._cpu
        return self

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

    def embedding(self, weight: QuantTensor, head: GpuLinear | None) -> Embedding | GpuEmbedding:
        """The GPU's, where it has all else and the driver lets it read RAM."""
        if not lies_whole(self.config, self.on_gpu):
            return Embedding(weight)
        if head is not None:
            return GpuEmbedding(head.weight, self.device)
        try:
            return GpuEmbedding.in_ram(weight, self.device)
        except GpuError:
            return Embedding(weight)

    def norm(self, weight: QuantTensor, eps: float) -> GpuNorm:
        return GpuNorm(float_tensor(weight).flatten().to(self.device), eps)

    def gate(self, config: ModelConfig, weights: Weights, prefix: str) -> GpuGate:
        router = float_tensor(weights[f"{prefix}.ffn_gate_inp.weight"]).to(self.device)
        name = f"{prefix}.exp_probs_b.bias"
        bias = float_tensor(weights[name]).flatten().to(self.device) if name in weights else None
        return GpuGate(config, router, bias)

    def mlp(self, bank: ExpertBank, layer: int | None = None) -> GpuMLP | RamMLP:
        if layer is None or self.on_gpu(f"blk.{layer}.ffn_up.weight"):
            return GpuMLP(self, bank)
        return RamMLP(self.stage, layer, bank)

    def attention(self, config: Config, weights: Weights, layer: int) -> GpuMLA | GpuGQA:
        if isinstance(config, DenseConfig):
            return GpuGQA(self, config, weights, layer)
        return GpuMLA(self, config, weights, layer)

    def experts(self, layer: int, bank: ExpertBank) -> RamExperts | VramExperts:
        if self.on_gpu(f"blk.{layer}.ffn_up_exps.weight"):
            return VramExperts(self, bank)
        return RamExperts(self.stage, layer, bank)

    def new_cache(self, context: int) -> KVCache:
        before, n_layers = None, self.config.n_layers - self._cpu_layers
        if self._cpu_layers:
            before = KVCache(self._cpu_layers, context, cache_layout.on_cpu(self.config))
        return GpuCache(n_layers, context, self.cache_layout, self.device, before)

    def hidden(self, rows: torch.Tensor, cache: KVCache) -> torch.Tensor:
        self.position.fill_(cache.length)
        return rows.to(self.device)

    def activations(self, normed: Activations) -> Activations:
        return normed


class GpuCache(KVCache):
    """`save` and `load`, which nothing of the runner's stands before, raise what `told` does."""

    save, load = told()(KVCache.save), told()(KVCache.load)


class GpuLinear:
    """`y = x @ weight.T`, in float32 sums of exact weights."""

    def __init__(self, weight: GpuWeight) -> None:
        self.weight = weight

    def __call__(self, x: Activations) -> torch.Tensor:
        """`x` `[T, cols]` -> float32 `[T, rows]`."""
        return linear(x, self.weight)


class GpuNorm:
    """RMSNorm; the addend may lie in pinned memory. Of a prompt its memory becomes the answer's: so
    there is one such piece of memory, and no smaller ones are cut out of it between two.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> Activations:
        if len(x) > FEW:
            out = add if add is not None and add.device == x.device else None
            return Activations(rms_norm(x, self.weight, self.eps, add, out))
        made = empty(len(x), x.shape[1], x.device)
        return Activations(rms_norm(x, self.weight, self.eps, add, integers=made), made)


class GpuGate:
    """The router; see gate.py."""

    def __init__(
        self, config: ModelConfig, router: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self.config, self.router, self.bias = config, router, bias

    def __call__(self, normed: Activations) -> tuple[torch.Tensor, torch.Tensor]:
        shape = len(normed), self.config.n_experts_per_tok
        ids = torch.empty(shape, dtype=torch.int32, device=self.router.device)
        weights = torch.empty(shape, dtype=torch.float32, device=self.router.device)
        scale = self.config.routed_scaling_factor
        route(normed.values, self.router, self.bias, self.config, scale, ids, weights)
        return ids, weights


class GpuMLP:
    """A dense FFN or the shared expert; its answer goes straight into the residual stream."""

    def __init__(self, parts: GpuParts, bank: ExpertBank) -> None:
        gate, up, down = (_matrix(bank_part) for bank_part in (bank.gate, bank.up, bank.down))
        self.joined = gate.format.name == up.format.name
        both = [(gate, up)] if self.joined else [(gate,), (up,)]
        self.gate_up = [parts.upload(*pair, stacked=self.joined) for pair in both]
        self.down = parts.upload(down)

    def __call__(self, normed: Activations, x: torch.Tensor) -> None:
        if len(x) <= FEW:
            linear(self._gated(normed), self.down, out=x, add=x)
            return
        for piece, out in zip(normed.values.split(PIECE), x.split(PIECE), strict=True):
            linear(self._gated(Activations(piece)), self.down, out=out, add=out)

    def _gated(self, x: Activations) -> torch.Tensor:
        """silu(gate . x) * (up . x)."""
        if not self.joined:
            return swiglu(*(linear(x, weight) for weight in self.gate_up))
        (weight,) = self.gate_up
        if len(x) <= FEW:
            return gated_gemv(x, weight)
        both = matmul(x.values, weight)
        return swiglu(both[:, 0], both[:, 1])


def _matrix(weight: QuantTensor) -> QuantTensor:
    """A bank of one as a matrix."""
    return QuantTensor(weight.format, weight.shape[-2:], weight.parts, weight.scales)
