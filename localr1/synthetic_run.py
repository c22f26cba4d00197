"""A model of random weights at work, on GPU and CPU or on the CPU alone: the times it takes.

Built and run by the engine's own parts. Only the choice of experts is replaced, by a random one for
every layer and token: a router of random weights would often choose the same. Not here: what the
times mean (bench_synthetic.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import cpu_experts
from cpu_experts import ExpertBank
from localr1.engine.runner import SUPER_CHUNK
from localr1.errors import DoesNotFit
from localr1.events import Progress
from localr1.models import compiled
from localr1.models.config import ModelConfig
from localr1.models.deepseek import MoE
from localr1.models.linear import Weights
from localr1.models.parts import Experts, Routed
from localr1.models.synthetic import SyntheticWeights
from localr1.models.transformer import Transformer
from offload.memory import available_bytes

if TYPE_CHECKING:
    from localr1.engine.graph import DecodeGraph
    from localr1.models.gpu import GpuParts

Report = Callable[[Progress], None]

_GIB = 1 << 30
_MARGIN = 12 * _GIB  # of the free RAM is left alone, or half of it where that is less
WARM = 3  # tokens before those that count
_LONG = 16_384  # tokens of a prompt beyond which a first round weighs little


class Choices:
    """Random ids of experts for each layer, at addresses that stay: a graph reads them there."""

    def __init__(self, config: ModelConfig, device: torch.device | str) -> None:
        self.config, self.device = config, device
        self._rng = np.random.default_rng(0)
        self._tables: dict[int, torch.Tensor] = {}

    def random(self, n_tokens: int) -> torch.Tensor:
        """int32 `[layers, T, k]` in RAM, no expert twice for a token."""
        c = self.config
        shape = n_tokens, c.n_routed_experts
        layers = [
            self._rng.random(shape, np.float32).argpartition(c.n_experts_per_tok - 1, axis=1)
            for _ in range(c.n_layers)
        ]
        ids = np.stack([layer[:, : c.n_experts_per_tok] for layer in layers])
        return torch.from_numpy(ids.astype(np.int32))

    def draw(self, n_tokens: int = 1, stub: bool = False) -> None:
        """New experts for the next `n_tokens` tokens; with `stub` none, so that nothing is read."""
        ids = self.random(n_tokens)
        if stub:
            ids.fill_(-1)
        if n_tokens in self._tables:
            self._tables[n_tokens].copy_(ids)
        else:
            self._tables[n_tokens] = ids.to(self.device)

    def of(self, layer: int, n_tokens: int) -> torch.Tensor:
        """What was drawn last for so many tokens, int32 `[T, k]`."""
        return self._tables[n_tokens][layer]


class _Chosen:
    """A layer's routed experts, with the choice made by `Choices`."""

    def __init__(self, experts: Experts, choices: Choices, layer: int) -> None:
        self.experts, self.choices, self.layer = experts, choices, layer

    def start(self, normed: Any, ids: torch.Tensor, weights: torch.Tensor) -> Routed:
        return self.experts.start(normed, self.choices.of(self.layer, len(ids)), weights)


class SyntheticRun:
    """A model of `config` in `quant` with room for `context` tokens.

    `ram` bytes are for the routed experts (None: what is free, less a margin). `seconds` tells how
    long it took to fill memory, to upload and to compile; `vram_free` what the driver says is left
    at the end of decoding. Raises DoesNotFit.
    """

    def __init__(
        self,
        config: ModelConfig,
        quant: str,
        context: int,
        ram: int | None = None,
        on_gpu: bool = False,
        report: Report = lambda progress: None,
    ) -> None:
        self.config, self.context, self.seconds = config, context, dict[str, float]()
        self._parts: GpuParts | None = None
        self.vram_free: int | None = None
        with self._timed("fill memory"):
            self.weights = SyntheticWeights(config, quant, _room(ram), report)
        with self._timed("compile CPU kernels"):
            _warm_up(self.weights.formats, report)
        with self._timed("upload" if on_gpu else "build"), torch.inference_mode():
            if on_gpu:
                from localr1.models.gpu import GpuParts

                self._parts = GpuParts(
                    config, context, report=_sent(report, self.weights.other_bytes)
                )
            self.model = Transformer(config, self.weights, context, self._parts)
            self.cache = self.model.new_cache(context)
            self.cache.rows.normal_()
        self.choices = Choices(config, self._parts.device if self._parts else "cpu")
        parts = [(layer, block.feed_forward) for layer, block in enumerate(self.model.blk)]
        moes = [(layer, part) for layer, part in parts if isinstance(part, MoE)]
        self.banks = {layer: _bank(self.weights, layer) for layer, _ in moes}
        for layer, moe in moes:
            moe.experts = _Chosen(moe.experts, self.choices, layer)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[what] = time.perf_counter() - began

    def _synchronize(self) -> None:
        if self._parts is not None:
            torch.cuda.synchronize()

    def prefill_seconds(self, n_tokens: int) -> float:
        """To read a prompt, up to the logits of its last token; the second of two, or the only one
        where that is long.
        """
        took = 0.0
        for _ in range(2 if n_tokens <= _LONG else 1):
            self.cache.truncate(0)
            began = time.perf_counter()
            for first in range(0, n_tokens, SUPER_CHUNK):
                self._read(range(first, min(first + SUPER_CHUNK, n_tokens)))
            self._synchronize()
            took = time.perf_counter() - began
        return took

    def _read(self, positions: range) -> None:
        """A piece of a prompt, as the engine does it."""
        self.choices.draw(len(positions))
        ids = [i * 7919 % self.config.vocab_size for i in positions]
        *_, hidden = self.model.layers(ids, self.cache)
        self.model.head(hidden, last=1)
        self.cache.commit(len(ids))

    def experts_seconds(self, tokens: int) -> float:
        """The routed experts of one token, nothing else between the layers; the median."""
        c = self.config
        x = np.random.default_rng(1).normal(0, 1, (1, c.hidden_size)).astype(np.float32)
        weights = np.full((1, c.n_experts_per_tok), 1 / c.n_experts_per_tok, np.float32)
        took = []
        for _ in range(tokens + WARM):
            ids = self.choices.random(1).numpy()
            began = time.perf_counter()
            for layer, bank in self.banks.items():
                cpu_experts.moe_forward(x, ids[layer], weights, bank)
            took.append(time.perf_counter() - began)
        return statistics.median(took[WARM:])

    def decode_seconds(self, tokens: int, stub: bool) -> tuple[float, float]:
        """Medians of a token's time: with its experts (0 with `stub`), and without any.

        The cache is filled up to `context - tokens - 1`.
        """
        self.choices.draw()
        self._rewind(tokens)
        with self._timed("compile GPU kernels" if self._parts else "first token"):
            graph = self._graph()
            step = graph.step if graph else self._eager
        try:
            decode = 0.0 if stub else self._median(step, tokens, stub=False)
            return decode, self._median(step, tokens, stub=True)
        finally:
            if graph:
                self.vram_free = torch.cuda.mem_get_info()[0]
                graph.close()

    def _graph(self) -> DecodeGraph | None:
        """A token as one CUDA graph; None on the CPU, where one token is run."""
        if self._parts is None:
            self._eager(0)
            return None
        from localr1.engine.graph import DecodeGraph

        return DecodeGraph(self.model, self._parts, self.cache)

    def _eager(self, token: int) -> torch.Tensor:
        *_, hidden = self.model.layers([token], self.cache)
        return self.model.head(hidden)

    def _rewind(self, tokens: int) -> None:
        """As many tokens of noise behind us as leave room for `tokens`, the warm ones and one."""
        self.cache.truncate(0)
        self.cache.commit(self.context - tokens - WARM - 1)

    def _median(self, step: Callable[[int], object], tokens: int, stub: bool) -> float:
        self._rewind(tokens)
        took = []
        for token in np.random.default_rng(2).integers(0, self.config.vocab_size, tokens + WARM):
            self.choices.draw(stub=stub)
            began = time.perf_counter()
            step(int(token))
            took.append(time.perf_counter() - began)
            self.cache.commit(1)
        return statistics.median(took[WARM:])


def _bank(weights: Weights, layer: int) -> ExpertBank:
    gate, up, down = (weights[f"blk.{layer}.ffn_{m}_exps.weight"] for m in ("gate", "up", "down"))
    return ExpertBank(gate, up, down)


def _room(ram: int | None) -> int:
    """Bytes for the routed experts."""
    free = available_bytes()
    if ram is None:
        return free - min(_MARGIN, free // 2)
    if ram > free:
        hint = "--ram is what routed experts may take; leave it out for what is free"
        raise DoesNotFit(f"{free / _GIB:.1f} GiB of RAM is free, less than {ram / _GIB:.1f}", hint)
    return ram


def _warm_up(formats: set[str], report: Report) -> None:
    """Compile what the CPU's part needs, or load it from the disk cache."""
    for done, total in cpu_experts.warmup(sorted(formats)):
        report(Progress("Compiling CPU kernels, first run only", done, total, "kernels"))
    for step in compiled.STEPS:
        step()


def _sent(report: Report, total: int) -> Callable[[int], None]:
    """`report` for an upload of about `total` bytes, told of each piece of it."""
    done = 0

    def more(piece: int) -> None:
        nonlocal done
        done += piece
        report(Progress("Uploading", min(done, total), total, "bytes"))

    return more
