"""The problem that every runner of experts gets: R1's shapes, the same bytes, the same routing.

A round of decode sends one token after another through every layer until each expert was used once,
so it reads the whole set; a round of prefill is one call. Weights are random blocks with normal
scales, which cost the same time as trained ones.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cpu_experts import FORMATS
from tests.cpu_experts.blocks import random_bytes

HIDDEN, INTER = 7168, 2048  # of DeepSeek-R1
EXPERTS, TOP = 32, 8  # R1 has 256 a layer; 32 distinct ones keep the set within RAM
NAMES = ("gate", "up", "down")
_SHIFT = 7919  # blocks between the beginnings of two experts in the same random bytes


@dataclass(frozen=True)
class Problem:
    """One format and one number of tokens a call; `gib` about the size of the set in decode."""

    format: str
    tokens: int = 1
    gib: float = 3.0

    @property
    def decode(self) -> bool:
        """Whether the time is that of reading weights."""
        return self.tokens == 1

    @property
    def experts(self) -> int:
        """Experts of a layer: all tokens of a small batch meet the same 8, which is the worst."""
        return TOP if 1 < self.tokens <= TOP else EXPERTS

    @property
    def expert_bytes(self) -> int:
        """Bytes of gate, up and down of one expert."""
        row = FORMATS[self.format]
        return 2 * INTER * row.row_bytes(HIDDEN) + HIDDEN * row.row_bytes(INTER)

    @property
    def layers(self) -> int:
        """Layers with weights of their own."""
        if not self.decode:
            return 1
        return max(1, round(self.gib * 2**30 / (self.expert_bytes * EXPERTS)))

    @property
    def calls(self) -> list[tuple[int, int]]:
        """(layer, index into `ids`) of the calls of a round, in order."""
        steps = EXPERTS // TOP if self.decode else 1
        return [(layer, step) for step in range(steps) for layer in range(self.layers)]

    @property
    def bytes(self) -> int:
        """Weight bytes that a round reads."""
        used = TOP if self.decode else self.experts
        return len(self.calls) * used * self.expert_bytes

    @property
    def operations(self) -> int:
        """Multiplications and additions of a round."""
        return len(self.calls) * self.tokens * TOP * 3 * 2 * HIDDEN * INTER

    def shape(self, name: str) -> tuple[int, int, int]:
        """(experts, rows, cols) of gate, up or down."""
        return (self.experts, HIDDEN, INTER) if name == "down" else (self.experts, INTER, HIDDEN)

    @cached_property
    def _blocks(self) -> np.ndarray:
        raw = random_bytes(self.format, INTER, HIDDEN, np.random.default_rng(1), scale=1e-3)
        blocks = raw.reshape(-1, FORMATS[self.format].block_bytes)
        if self.format == "Q8_0":  # no quantiser writes -128, and ik_llama.cpp relies on that
            values = blocks[:, 2:]
            values[values == 0x80] = 0x81
        return blocks

    def fill(self, target: np.ndarray, layer: int, name: str) -> None:
        """Write the weights of a layer's gate, up or down into `target`, uint8 of their size."""
        experts = target.reshape(self.experts, *self._blocks.shape)
        for number, expert in enumerate(experts):
            index = (layer * len(NAMES) + NAMES.index(name)) * self.experts + number
            at = index * _SHIFT % len(self._blocks)
            expert[: len(expert) - at] = self._blocks[at:]
            expert[len(expert) - at :] = self._blocks[:at]

    def weights(self, layer: int, name: str) -> np.ndarray:
        """The same in memory of its own, uint8."""
        target = huge(self.experts * self._blocks.size)
        self.fill(target, layer, name)
        return target

    @cached_property
    def x(self) -> np.ndarray:
        """Activations float32 [tokens, hidden], the same in each call."""
        rng = np.random.default_rng(2)
        return rng.normal(0, 1, (self.tokens, HIDDEN)).astype(np.float32)

    @cached_property
    def ids(self) -> np.ndarray:
        """Experts int32 [steps, tokens, 8]; the steps of decode have no expert in common."""
        rng = np.random.default_rng(3)
        if self.decode:
            return rng.permutation(EXPERTS).astype(np.int32).reshape(-1, 1, TOP)
        rows = [rng.permutation(self.experts)[:TOP] for _ in range(self.tokens)]
        return np.array(rows, dtype=np.int32)[None]

    @cached_property
    def routing(self) -> np.ndarray:
        """Routing weights float32 [tokens, 8], each row's sum 1."""
        values = np.random.default_rng(4).uniform(0.5, 1.5, (self.tokens, TOP))
        return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def huge(size: int) -> np.ndarray:
    """uint8 [size] of private memory, in huge pages where the system gives them to who asks."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


def ask_for_huge_pages(address: int, size: int) -> None:
    """The same for memory that a peer allocated and has not yet written."""
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + size - start) // page * page
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
