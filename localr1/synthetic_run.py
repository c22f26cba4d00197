"""A model of random weights at work, on GPU and CPU or on the CPU alone: the times it takes.

Built and run by the engine's own parts. Only the choice of experts is replaced
(synthetic_choice.py). Not here: what the times mean (bench_synthetic.py).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import cpu_experts
from cpu_experts import ExpertBank
from cpu_experts.token_program import GROUPED, LATENT, Row, TokenProgram
from cpu_experts.warmup import MAILBOX
from localr1.engine import halves
from localr1.engine.runner import SUPER_CHUNK
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import DoesNotFit
from localr1.events import Progress
from localr1.interrupts import HeldInterrupts
from localr1.models.architecture import Config
from localr1.models.cache_layout import IN_16_BITS
from localr1.models.config import ModelConfig
from localr1.models.deepseek import ffn_bank
from localr1.models.kv_cache import KVCache
from localr1.models.synthetic import SyntheticWeights
from localr1.models.transformer import Transformer
from localr1.synthetic_choice import Choices, Chosen, ChosenToken
from offload.memory import available_bytes

if TYPE_CHECKING:
    from localr1.engine.ahead import DecodeAhead
    from localr1.models.gpu import GpuParts
    from localr1.models.gpu_embedding import GpuEmbedding

Report = Callable[[Progress], None]

_GIB = 1 << 30
_MARGIN = 12 * _GIB  # of the free RAM is left alone, or half of it where that is less
WARM = 3  # tokens before those that count
_LONG = 16_384  # tokens of a prompt beyond which a first round weighs little


class TokenSeconds(NamedTuple):
    """What a token takes. A part that was not measured takes 0."""

    whole: float
    without: float  # experts; a GPU asks for them, and is answered at once
    silent: float  # the same where nobody is asked


class SyntheticRun:
    """A model of `config` in `quant` with room for `context` tokens.

    `ram` bytes are for the weights `in_ram` (None: what is free, less a margin); `cache` is the
    form of a GPU's, to which experts come for prompts of `streams_from` tokens. `banks` are those
    of the layers that ask the CPU. `seconds` tells how long it took to fill memory, to upload and
    to compile; `vram_free` what the driver says was left behind a prompt or a token, whichever was
    less. Raises DoesNotFit.
    """

    def __init__(
        self,
        config: Config,
        quant: str,
        context: int,
        in_ram: frozenset[str],
        ram: int | None = None,
        on_gpu: bool = False,
        cache: str = IN_16_BITS,
        streams_from: int | None = None,
        report: Report = lambda progress: None,
    ) -> None:
        self.config, self.context, self.seconds = config, context, dict[str, float]()
        self._parts: GpuParts | None = None
        self._embedding: GpuEmbedding | None = None  # which the GPU reads by itself
        self._rest: Callable[[], None] = lambda: None  # frees the cores until the next token
        self.vram_free: int | None = None
        with self._timed("fill memory"):
            self.weights = SyntheticWeights(config, quant, in_ram, _room(ram), report)
        with self._timed("compile CPU kernels"):
            callers = [LATENT if isinstance(config, ModelConfig) else GROUPED]
            if on_gpu:
                callers = [MAILBOX] if in_ram else []
            _warm_up(self.weights.formats, callers, report)
        if on_gpu:
            with self._timed("compile GPU kernels"):
                _warm_up_gpu(config, self.weights, cache, streams_from is not None, report)
        with self._timed("upload" if on_gpu else "build"), torch.inference_mode():
            if on_gpu:
                from localr1.engine.gpu_load import sent
                from localr1.models.gpu import GpuParts
                from localr1.models.gpu_embedding import GpuEmbedding

                self._parts = GpuParts(
                    config, context, on_gpu=lambda name: name not in in_ram,
                    report=sent(report, self.weights.other_bytes), cache=cache,
                )  # fmt: skip
            self.model = Transformer(config, self.weights, context, self._parts)
            if self._parts and streams_from is not None:
                deque(self._parts.stage.open_streaming(streams_from, owned=True), maxlen=0)
            if on_gpu and isinstance(self.model.token_embd, GpuEmbedding):
                self._embedding = self.model.token_embd
            self.cache = self.model.new_cache(context)
            fill_with_noise(self.cache)
        self.choices = Choices(config, self._parts.device if self._parts else "cpu")
        suffix = _suffix(config)
        self.banks: dict[int, ExpertBank] = {}
        for layer in asked(config, in_ram, on_gpu):
            self.banks[layer] = ffn_bank(self.weights, f"blk.{layer}", suffix)
            block = self.model.blk[layer].feed_forward
            block.experts = Chosen(block.experts, self.banks[layer], self.choices, layer)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[what] = time.perf_counter() - began

    @property
    def held_bytes(self) -> int:
        """Bytes of RAM that hold weights."""
        copy = self._embedding.copied_bytes if self._embedding else 0
        return self.weights.held_bytes + copy

    def _synchronize(self) -> None:
        if self._parts is not None:
            torch.cuda.synchronize()

    def streams(self, n_tokens: int) -> bool:
        """Whether experts come to a GPU for such a prompt."""
        return self._parts is not None and self._parts.stage.streams(n_tokens)

    def prefill_seconds(self, n_tokens: int) -> float:
        """To read a prompt, up to the logits of its last token; the second of two, or the only one
        where that is long.
        """
        took = 0.0
        chunks = [
            range(first, min(first + SUPER_CHUNK, n_tokens))
            for first in range(0, n_tokens, SUPER_CHUNK)
        ]
        for size in {size for chunk in chunks for size in self._pieces(len(chunk))}:
            self.choices.draw(size)
        for _ in range(2 if n_tokens <= _LONG else 1):
            self.cache.truncate(0)
            began = time.perf_counter()
            for chunk in chunks:
                self._read(chunk)
            self._synchronize()
            took = time.perf_counter() - began
        if self._parts is not None:
            self._look_at_vram()
        return took

    def _look_at_vram(self) -> None:
        """torch keeps what it took, so what is free now is the least that was."""
        free = torch.cuda.mem_get_info()[0]
        self.vram_free = free if self.vram_free is None else min(free, self.vram_free)

    def _pieces(self, n_tokens: int) -> list[int]:
        """The sizes of the pieces that meet the experts."""
        return halves.halves(n_tokens, self._parts) if self._parts else [n_tokens]

    def _read(self, positions: range) -> None:
        """A piece of a prompt, as the engine does it."""
        ids = [i * 7919 % self.config.vocab_size for i in positions]
        if self._parts:
            *_, hidden = halves.read(self.model, self._parts, ids, self.cache)
        else:
            *_, hidden = self.model.layers(ids, self.cache)
        self.model.head(hidden, last=1)
        self.cache.commit(len(ids))

    def experts_seconds(self, tokens: int) -> float:
        """The banks' share of one token, nothing else between the layers; the median."""
        program, k, hidden = TokenProgram(), self.choices.top_k, self.config.hidden_size
        x = np.random.default_rng(1).normal(0, 1, hidden).astype(np.float32)
        weights = program.array(np.full(k, 1 / k, np.float32))
        place, out, chosen = program.array(x), program.row("out", hidden), {}
        for layer, bank in self.banks.items():
            chosen[layer] = np.zeros(k, np.int32)
            ids = program.array(chosen[layer])
            program.experts(bank, Row("x", place, hidden), ids, weights, k, out)
        took = []
        for _ in range(tokens + WARM):
            drawn = self.choices.random(1).numpy()
            for layer, ids_of_layer in chosen.items():
                ids_of_layer[:] = drawn[layer, 0]
            began = time.perf_counter()
            program.run()
            took.append(time.perf_counter() - began)
        return statistics.median(took[WARM:])

    def decode_seconds(
        self, tokens: int, stub: bool, beside: Callable[[], None] | None = None
    ) -> TokenSeconds:
        """Medians; of the whole token only without `stub`, of the others where a layer asks for
        experts. The cache is filled up to `context - tokens - 1`. `beside` is called after each
        whole token, all cores free, but for tokens of the GPU alone, which draws them: each has
        begun when the one before ends.
        """
        whole = skipped = silent = 0.0
        with self._token(silent=False) as step:
            if not stub:
                whole = self._median(step, tokens, beside=None if self._embedding else beside)
            if self.banks and self._parts:
                skipped = self._median(step, tokens, stub=True)
        if self.banks:
            with self._token(silent=True) as step:
                silent = self._median(step, tokens)
        return TokenSeconds(whole, skipped if self._parts else silent, silent)

    @contextmanager
    def _token(self, silent: bool) -> Iterator[Callable[[int], object]]:
        """A token in the engine's one call, on a GPU a CUDA graph; asking for experts or not."""
        self._rewind(1)
        self.choices.draw()
        self.choices.silent = silent
        try:
            if self._parts:
                with self._gpu_token(self._parts, silent) as step:
                    yield step
            else:
                yield self._cpu_token(silent)
        finally:
            self.choices.silent = False

    def _cpu_token(self, silent: bool) -> Callable[[int], object]:
        token = ChosenToken(self.model, self.cache, None if silent else self.choices)
        self.choices.draw()
        with self._timed("first token without experts" if silent else "first token"):
            token.step(0)
        return token.step

    @contextmanager
    def _gpu_token(self, parts: GpuParts, silent: bool) -> Iterator[Callable[[int], object]]:
        from localr1.engine.ahead import DecodeAhead
        from localr1.engine.graph import DecodeGraph

        graph = None
        with self._timed("capture without experts" if silent else "capture"):
            if self._embedding is not None:
                step = _drawn(DecodeAhead(self.model, self._embedding, parts, self.cache))
            else:
                graph = DecodeGraph(self.model, parts, self.cache)
                step, self._rest = graph.step, graph.rest
        try:
            yield step
        finally:
            self._rest = lambda: None
            if not silent:
                self._look_at_vram()
            if graph is not None:
                graph.close()

    def _rewind(self, tokens: int) -> None:
        """As many tokens of noise behind us as leave room for `tokens`, the warm ones and one."""
        self.cache.truncate(0)
        self.cache.commit(self.context - tokens - WARM - 1)

    def _median(
        self, step: Callable[[int], object], tokens: int, stub: bool = False,
        beside: Callable[[], None] | None = None,
    ) -> float:  # fmt: skip
        self._rewind(tokens)
        took = []
        for token in np.random.default_rng(2).integers(0, self.config.vocab_size, tokens + WARM):
            if self.banks:  # this waits for the GPU, which may be at work on the next token
                self.choices.draw(stub=stub)
            began = time.perf_counter()
            step(int(token))
            took.append(time.perf_counter() - began)
            self.cache.commit(1)
            if beside:
                self._rest()
                beside()
        return statistics.median(took[WARM:])


def _drawn(ahead: DecodeAhead) -> Callable[[int], object]:
    """A step to the token that the GPU draws, whichever is asked for."""
    sampler = Sampler(SamplingParams(temperature=0.0), [])
    logits = ahead.step(0)

    def step(token: int) -> None:
        nonlocal logits
        logits = ahead.step(ahead.draw(sampler, logits))

    return step


def fill_with_noise(cache: KVCache) -> None:
    """Rows as of a long conversation; in 8 bits numbers up to 2 (int8) or 7 (e4m3)."""
    if cache.scales is None:
        cache.rows.normal_()
        return
    cache.rows.random_(0, 127)  # the code behind them is e4m3's for what is no number
    cache.scales.fill_(2**-6)


def asked(config: Config, in_ram: frozenset[str], on_gpu: bool) -> list[int]:
    """Layers that ask the CPU: for routed experts, or a GPU for a dense FFN that lies in RAM."""
    if not on_gpu and not isinstance(config, ModelConfig):
        return []
    name = f"ffn_up{_suffix(config)}.weight"
    return [layer for layer in range(config.n_layers) if f"blk.{layer}.{name}" in in_ram]


def _suffix(config: Config) -> str:
    return "_exps" if isinstance(config, ModelConfig) else ""


def _room(ram: int | None) -> int:
    """Bytes for what is read from RAM."""
    free = available_bytes()
    if ram is None:
        return free - min(_MARGIN, free // 2)
    if ram > free:
        hint = "--ram, or the setting, is what weights may take there; unset it is what is free"
        raise DoesNotFit(f"{free / _GIB:.1f} GiB of RAM is free, less than {ram / _GIB:.1f}", hint)
    return ram


def _warm_up(formats: set[str], callers: list[str], report: Report) -> None:
    """Compile what the CPU's part needs, or load it from the disk cache."""
    with HeldInterrupts() as held:
        for done, total in cpu_experts.warmup(sorted(formats), callers):
            report(Progress("Compiling CPU kernels, first run only", done, total, "kernels"))
            held.check()


def _warm_up_gpu(
    config: Config, weights: SyntheticWeights, cache: str, streams: bool, report: Report
) -> None:
    """The same of the GPU's part."""
    from localr1.engine.gpu_load import compile_kernels, formats_of

    formats = formats_of(config, weights, weights.other_names, streams)
    compile_kernels(config, formats, 0, cache, report)
