"""A model's weights in its real shapes and types with random bytes: for measuring, not for talking.

What is to be read from RAM takes as much of it as is given; where that is less than the model has,
later weights use the memory of earlier ones again. Everything else is filled too: nothing is sparse
or all zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import cpu_experts
from cpu_experts import FORMATS, QuantTensor
from cpu_experts.bench import filled_memory
from localr1.errors import DoesNotFit
from localr1.events import Progress
from localr1.models.architecture import Config
from localr1.models.quant_rules import family_of, type_of
from localr1.models.shapes import weight_shapes

_OTHERS = 1 << 30  # bytes that all other weights are cut from, or the size of the largest
_PIECE = 1 << 24
_QUIET = 1e-7  # matrices of random bytes make numbers some hundred times larger, each of them

Report = Callable[[Progress], None]


class SyntheticWeights:
    """`Weights` (linear.py) of `config` in the types of `quant`, with `attn_k_b` and `attn_v_b`.

    `ram` bytes are for the weights named `in_ram`, which would take `routed_bytes`;
    `distinct_bytes` of them are used. All other weights would take `other_bytes`. Raises DoesNotFit
    where one of `in_ram` is larger than `ram`. `held_bytes` is all memory that was filled;
    `other_names` are the quantised weights that are not `in_ram`.
    """

    def __init__(
        self,
        config: Config,
        quant: str,
        in_ram: frozenset[str],
        ram: int,
        report: Report = lambda progress: None,
    ) -> None:
        family, self._in_ram = family_of(config), in_ram
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, shape in weight_shapes(config).items():
            if not name.endswith("attn_kv_b.weight"):
                self._kinds[name] = type_of(name, shape, quant, family), shape
        routed = [name for name in self._kinds if name in in_ram]
        others = [name for name, (kind, _) in self._kinds.items() if kind != "F32"]
        self.other_names = [name for name in others if name not in in_ram]
        self.routed_bytes = sum(map(self._nbytes, routed))
        self.distinct_bytes = min(ram, self.routed_bytes)
        self._check(max(map(self._nbytes, routed), default=0))
        self.other_bytes = sum(map(self._nbytes, self.other_names))
        shared = min(self.other_bytes, max([_OTHERS, *map(self._nbytes, self.other_names)]))
        self.held_bytes = self.distinct_bytes + shared
        kinds = self.formats - {"F32"}
        kind = kinds.pop() if len(kinds) == 1 else "Q8_0"  # several: blocks, which all look alike
        self._routed = _filled(self.distinct_bytes, kind, report)
        self._others = _filled(shared, kind, report)
        self._place = self._places(routed, self.distinct_bytes)
        self._place |= self._places(self.other_names, shared)

    @property
    def formats(self) -> set[str]:
        """The formats in use."""
        return {kind for kind, _ in self._kinds.values()}

    @property
    def measured(self) -> np.ndarray:
        """The memory that RAM's bandwidth is measured on: what is read from it, if anything is."""
        return self._routed if self._routed.size else self._others

    def _check(self, largest: int) -> None:
        if largest > self.distinct_bytes:
            gib = 1 << 30
            raise DoesNotFit(
                f"one of the weights to read from RAM takes {largest / gib:.2f} GiB, and there are "
                f"{self.distinct_bytes / gib:.2f} GiB for all of them",
                "give more with --ram, or take a smaller model or quant",
            )

    def _nbytes(self, name: str) -> int:
        kind, shape = self._kinds[name]
        return math.prod(shape[:-1]) * int(FORMATS[kind].row_bytes(shape[-1]))

    def _places(self, names: Iterable[str], room: int) -> dict[str, int]:
        """Where each weight begins: one behind the other, and from the start again."""
        places, at = {}, 0
        for name in names:
            at = at if at + self._nbytes(name) <= room else 0
            places[name] = at
            at += self._nbytes(name)
        return places

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def __getitem__(self, name: str) -> QuantTensor:
        kind, shape = self._kinds[name]
        if kind == "F32":
            return QuantTensor(kind, shape, (_floats(name, shape).view(np.uint8),))
        memory, at = self._routed if name in self._in_ram else self._others, self._place[name]
        return QuantTensor(kind, shape, (memory[at : at + self._nbytes(name)],))


def _filled(n_bytes: int, kind: str, report: Report) -> np.ndarray:
    """Random numbers of a type, written by several threads, so that they lie on all NUMA nodes."""
    pattern, memory = filled_memory(_PIECE, kind), np.empty(n_bytes, np.uint8)

    def fill(start: int) -> int:
        part = memory[start : start + _PIECE]
        part[:] = pattern[: part.size]
        return int(part.size)

    done = 0
    with ThreadPoolExecutor(cpu_experts.get_threads()) as pool:
        for size in pool.map(fill, range(0, n_bytes, _PIECE)):
            done += size
            report(Progress("Filling memory", done, n_bytes, "bytes"))
    return memory


def _floats(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms near 1, routers of which every token makes another choice.

    What attention is given is so small that its scores are like those of a real model. Else all
    weights of a softmax but one would be at the end of float32's range, where CPUs are slow.
    """
    noise = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
    if name.endswith("attn_norm.weight"):
        return np.float32(_QUIET) * (1 + 0.1 * noise)
    return 1 + 0.1 * noise if shape[0] == 1 else noise * np.float32(shape[-1] ** -0.5)
