"""Routed experts of a model on the GPU: in RAM, asked from there, or in the GPU's own memory.

Those in RAM are asked through the mailbox while a graph is recorded (localr1.engine.graph), so that
no Python runs between the GPU and them; else activations are copied to RAM and answers back. A
dense FFN in RAM goes the same way. For a long prompt they come to the GPU (gpu_streaming.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from cpu_experts import ExpertBank, moe_forward
from cpu_experts.mailbox import Mailbox
from localr1.gpu.activation import swiglu
from localr1.gpu.activations import Activations
from localr1.gpu.linear import gemv
from localr1.gpu.mailbox import Handoff, pinned
from localr1.gpu.sizes import experts_per_token
from localr1.gpu.tiles import FEW
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.experts import feed_forward, only_expert
from localr1.models.gpu_grouped import add_answers, slots_of
from localr1.models.gpu_streaming import Streaming

if TYPE_CHECKING:
    from localr1.models.gpu import GpuParts

_DENSE_PIECE = 2048  # the same of a dense FFN in RAM: more need memory, and are no quicker


class Posted(NamedTuple):
    """A question in the mailbox; `early`: the shared expert works until it is waited for."""

    handoff: Handoff
    n_tokens: int
    early: bool

    def wait(self) -> torch.Tensor:
        self.handoff.wait(early=self.early)
        return self.handoff.out[: self.n_tokens]


class Copied(NamedTuple):
    """A question whose copies to RAM are on their way: the CPU computes when it is waited for."""

    stage: Stage
    layer: int
    n_tokens: int
    memory: tuple[torch.Tensor, ...]  # the stage's, for the question and its answer
    arrived: torch.cuda.Event | None

    def wait(self) -> torch.Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        bank, parts = self.stage.banks[self.layer], [part[: self.n_tokens] for part in self.memory]
        assert bank is not None
        x, ids, weights, answer = (part.numpy() for part in parts)
        if self.layer in self.stage.dense:
            for first in range(0, len(x), _DENSE_PIECE):
                piece = slice(first, first + _DENSE_PIECE)
                feed_forward(x[piece], bank, answer[piece])
        else:
            moe_forward(x, ids, weights, bank, answer)
        self.stage.spare.append(self.memory)
        return parts[-1].to(self.stage.device, non_blocking=True, copy=True)


class Computed:
    """An answer that the GPU has been told to compute; only who waits for it holds its memory."""

    def __init__(self, answer: torch.Tensor) -> None:
        self._answer = [answer]

    def wait(self) -> torch.Tensor:
        return self._answer.pop()


class Stage:
    """The way from the GPU to the experts in RAM and back.

    Through the mailbox of `handoff` where there is one, else through pinned memory, as much as so
    many questions needed as were on their way at once. An answered one leaves it to the next: work
    of one CUDA stream keeps its order, so what is written there does not overtake what is read.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.top_k = experts_per_token(config)
        self.banks: list[ExpertBank | None] = [None] * config.n_layers
        self.dense: set[int] = set()  # layers whose bank is a dense FFN
        self.handoff: Handoff | None = None
        self.spare: list[tuple[torch.Tensor, ...]] = []  # for a question and its answer each
        self.streaming: Streaming | None = None  # of the prompt that is being read
        self.streamer: Streaming | None = None
        self._streams_from = 0
        self._early = isinstance(config, ModelConfig) and config.n_shared_experts > 0
        self._only = only_expert(FEW, self.top_k, device)  # graphs read it as long as we live

    @property
    def routed(self) -> dict[int, ExpertBank]:
        """The routed experts in RAM, by layer."""
        return {i: bank for i, bank in enumerate(self.banks) if bank and i not in self.dense}

    def ask(
        self, layer: int, normed: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> Copied | Posted:
        """See parts.Experts.start."""
        if self.handoff is not None:
            self.handoff.post(layer, normed, ids, weights)
            return Posted(self.handoff, len(normed), self._early and layer not in self.dense)
        memory = self._memory(normed, ids, weights)
        for copy, part in zip(memory, (normed, ids, weights), strict=False):
            copy[: len(part)].copy_(part, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True) if normed.is_cuda else None
        if arrived is not None:
            arrived.record()
        return Copied(self, layer, len(normed), memory, arrived)

    def open_streaming(self, n_tokens: int, owned: bool) -> Iterator[tuple[int, int]]:
        """From prompts of so many tokens on let the routed experts in RAM come to the GPU. Takes
        the memory for that, and tells the driver of theirs where it is `owned`: yields (bytes
        done, bytes in all).
        """
        self.streamer, self._streams_from = Streaming(self.routed, self.device), n_tokens
        if owned and self.device.type == "cuda":
            yield from self.streamer.register()

    def streams(self, n_tokens: int) -> bool:
        """Whether the routed experts come to the GPU for a prompt of so many tokens."""
        return self.streamer is not None and n_tokens >= self._streams_from

    @contextmanager
    def prompt(self, n_tokens: int) -> Iterator[None]:
        """Inside, they do if so many tokens are read, each layer's once, instead of being asked."""
        if self.streamer is None or not self.streams(n_tokens):
            yield
            return
        with self.streamer as self.streaming:
            try:
                yield
            finally:
                self.streaming = None

    def only_expert(self, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The choice of tokens that all take a dense FFN: see experts.only_expert."""
        if n_tokens > FEW:
            return only_expert(n_tokens, self.top_k, self.device)
        ids, weights = self._only
        return ids[:n_tokens], weights[:n_tokens]

    def _memory(self, *question: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For a question and its answer, or for more tokens."""
        memory = self.spare.pop() if self.spare else ()
        if memory and len(memory[0]) >= len(question[0]):
            return memory
        del memory  # before the larger one is made
        pinned = self.device.type == "cuda"
        return tuple(
            torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)
            for part in (*question, question[0])
        )

    def open_mailbox(self) -> Handoff:
        """Start the thread that answers the GPU; `handoff` says when it is asked."""
        shape = self.config.hidden_size, self.top_k, FEW
        box = Mailbox(self.banks, *shape, pinned(Mailbox.size(*shape)))
        box.start()
        return Handoff(box, self.device)


class RamExperts:
    """Routed experts in RAM."""

    def __init__(self, stage: Stage, layer: int, bank: ExpertBank) -> None:
        self.stage, self.layer = stage, layer
        stage.banks[layer] = bank

    def start(
        self, normed: Activations, ids: torch.Tensor, weights: torch.Tensor
    ) -> Copied | Posted | Computed:
        streaming = self.stage.streaming
        if streaming is not None and self.layer in streaming.banks:
            return Computed(streaming.answer(self.layer, normed.values, ids, weights))
        return self.stage.ask(self.layer, normed.values, ids, weights)


class RamMLP:
    """A dense FFN in RAM: a bank whose only expert every token takes."""

    def __init__(self, stage: Stage, layer: int, bank: ExpertBank) -> None:
        self.stage, self.experts = stage, RamExperts(stage, layer, bank)
        stage.dense.add(layer)

    def __call__(self, normed: Activations, x: torch.Tensor) -> Copied | Posted | Computed:
        return self.experts.start(normed, *self.stage.only_expert(len(normed)))


class VramExperts:
    """Experts in the GPU's memory."""

    def __init__(self, parts: GpuParts, bank: ExpertBank) -> None:
        self.gate, self.up, self.down = map(parts.upload, (bank.gate, bank.up, bank.down))
        self.n_experts = bank.n_experts

    def start(self, normed: Activations, ids: torch.Tensor, weights: torch.Tensor) -> Computed:
        if len(normed) == 1:
            return Computed(self._one(normed, ids, weights))
        rows = normed.values
        if len(rows) <= FEW:
            each = zip(map(Activations, rows.split(1)), ids.split(1), weights.split(1), strict=True)
            return Computed(torch.cat([self._one(*one) for one in each]))
        answer, slots = torch.zeros_like(rows), slots_of(ids, self.n_experts)
        add_answers(answer, rows, weights, slots, (self.gate, self.up, self.down))
        return Computed(answer)

    def _one(self, x: Activations, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One token through its experts, all at once: `[1, hidden]`."""
        (chosen,) = ids.clone()  # at an address of its own, which kernels want
        gate, up = (gemv(x, weight, ids=chosen)[0] for weight in (self.gate, self.up))
        return weights @ gemv(swiglu(gate, up)[None], self.down, ids=chosen)[0]
