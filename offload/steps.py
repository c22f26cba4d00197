"""Weights in the steps in which fast memory is given out: what moves together, and in which order.

Not here: how far each memory reaches (offload.planner).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from offload.placement import Kind, Tier, Weight
from offload.predict import prompt_cost

_ORDER = [Kind.ATTENTION, Kind.SHARED, Kind.HEAD, Kind.DENSE, Kind.ROUTED]
_FFNS = (Kind.DENSE, Kind.ROUTED)
_BEHIND = 1 << 30  # the head's layer: behind all others


@dataclass(frozen=True, slots=True)
class Step:
    """Weights that move together."""

    kind: Kind
    layer: int
    weights: tuple[Weight, ...]
    nbytes: int
    gpu_nbytes: int
    read: float  # bytes, by a token
    prompt_read: float  # bytes, by a prompt
    operations: float  # by a prompt
    weighed: float  # the same, as much more or less as they cost on the CPU


class Order:
    """Steps as memory is given out to them, with running totals: entry n is of the first n steps.

    The first `cpu_layers` layers are kept from a GPU. It gets at least the first `least` steps, the
    other layers' attention and shared experts with the head, and at most the first `most`: their
    FFNs, and routed experts where no layer is kept. These come last, since a token reads few.
    """

    def __init__(self, steps: Iterable[Step], cpu_layers: int) -> None:
        def place(step: Step) -> tuple[bool, bool, int, int]:
            kept = step.layer < cpu_layers
            return step.kind == Kind.ROUTED, kept, _ORDER.index(step.kind), step.layer

        self.cpu_layers = cpu_layers
        self.steps = sorted(steps, key=place)
        there = [step for step in self.steps if step.layer >= cpu_layers]
        self.least = sum(step.kind not in _FFNS for step in there)
        self.n_unrouted = sum(step.kind != Kind.ROUTED for step in there)
        self.most = self.n_unrouted if cpu_layers else len(there)
        self.nbytes = self._totals(lambda s: s.nbytes)
        self.gpu_nbytes = self._totals(lambda s: s.gpu_nbytes)
        self.read = self._totals(lambda s: s.read)
        self.shared = self._totals(lambda s: s.read * (s.kind == Kind.SHARED))
        self.linear = self._totals(lambda s: s.read * (s.kind in (Kind.ATTENTION, Kind.HEAD)))
        self.prompt = self._totals(lambda s: s.prompt_read)
        self.operations = self._totals(lambda s: s.operations)
        self.weighed = self._totals(lambda s: s.weighed)
        self.attention = self._totals(lambda s: s.kind == Kind.ATTENTION)
        self.ffns = self._totals(lambda s: s.kind in _FFNS)
        self.routed = self._totals(lambda s: s.kind == Kind.ROUTED)

    def _totals(self, value: Callable[[Step], float]) -> list[float]:
        return [0, *accumulate(value(step) for step in self.steps)]


def steps(weights: Iterable[Weight], isa: str) -> list[Step]:
    """The steps of a model; its embedding and what is not used are none."""
    groups: dict[tuple[Kind, int], list[Weight]] = {}
    for weight in weights:
        # Norms go with their layer's attention, those outside the layers with the head.
        layer = weight.layer if weight.layer >= 0 else _BEHIND
        norm = Kind.ATTENTION if weight.layer >= 0 else Kind.HEAD
        kind = norm if weight.kind == Kind.ROUTER else weight.kind
        if kind in _ORDER:
            groups.setdefault((kind, layer), []).append(weight)
    return [step(kind, layer, group, isa) for (kind, layer), group in groups.items()]


def step(kind: Kind, layer: int, weights: Sequence[Weight], isa: str) -> Step:
    """These weights as one step."""
    prompts = [prompt_cost(weight, isa) for weight in weights]
    return Step(
        kind=kind,
        layer=layer,
        weights=tuple(weights),
        nbytes=sum(weight.nbytes for weight in weights),
        gpu_nbytes=sum(weight.bytes_in(Tier.GPU) for weight in weights),
        read=sum(weight.nbytes * weight.read_fraction for weight in weights),
        prompt_read=sum(row[0] for row in prompts),
        operations=sum(row[1] for row in prompts),
        weighed=sum(row[2] for row in prompts),
    )


def least_bytes(steps: Iterable[Step], n_layers: int) -> list[int]:
    """What a GPU must hold of weights; entry n: with the first n layers on the CPU."""
    by_layer = [0] * n_layers
    for step in steps:
        if step.kind not in _FFNS:
            by_layer[min(step.layer, n_layers - 1)] += step.gpu_nbytes
    return list(accumulate(reversed(by_layer)))[::-1]
