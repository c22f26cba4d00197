"""A model's weights in its real shapes and types with random bytes: for measuring, not for talking.

Routed experts take as much RAM as is given; where that is less than the model has, later layers use
the memory of earlier ones again. Everything else is filled too: nothing is sparse or all zero.
"""

from __future__ import annotations

import math

import numpy as np

from cpu_experts import FORMATS, QuantTensor
from cpu_experts.bench import filled_memory
from localr1.models.config import ModelConfig
from localr1.models.quant_rules import Family, type_of
from localr1.models.shapes import weight_shapes

_OTHERS = 1 << 30  # bytes that all other weights are cut from: each fits


class SyntheticWeights:
    """`Weights` (linear.py) of `config` in the types of `quant`, with `attn_k_b` and `attn_v_b`."""

    def __init__(self, config: ModelConfig, quant: str, routed_bytes: int) -> None:
        family = Family(config.n_layers)
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, shape in weight_shapes(config).items():
            if not name.endswith("attn_kv_b.weight"):
                self._kinds[name] = type_of(name, shape, quant, family), shape
        self.routed_bytes = sum(map(self._nbytes, filter(_is_routed, self._kinds)))
        self.distinct_bytes = min(routed_bytes, self.routed_bytes)
        self._routed, self._others = filled_memory(self.distinct_bytes), filled_memory(_OTHERS)
        self._place = self._place_of()

    def _nbytes(self, name: str) -> int:
        kind, shape = self._kinds[name]
        return math.prod(shape[:-1]) * int(FORMATS[kind].row_bytes(shape[-1]))

    def _place_of(self) -> dict[str, int]:
        """Where each routed weight begins: one behind the other, and from the start again."""
        places, at = {}, 0
        for name in filter(_is_routed, self._kinds):
            at = at if at + self._nbytes(name) <= self.distinct_bytes else 0
            places[name] = at
            at += self._nbytes(name)
        return places

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def __getitem__(self, name: str) -> QuantTensor:
        kind, shape = self._kinds[name]
        if kind == "F32":
            return QuantTensor(kind, shape, (_floats(name, shape).view(np.uint8),))
        memory, at = (self._routed, self._place[name]) if _is_routed(name) else (self._others, 0)
        return QuantTensor(kind, shape, (memory[at : at + self._nbytes(name)],))


def _is_routed(name: str) -> bool:
    return "_exps." in name


def _floats(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms near 1, routers of which every token makes another choice."""
    noise = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
    return 1 + 0.1 * noise if shape[0] == 1 else noise * np.float32(shape[-1] ** -0.5)
