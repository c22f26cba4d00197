"""Where everything goes: `plan`, a pure function of a model's weights and a machine.

Weights are placed in steps: the attention of a layer, its shared experts, the head, a dense FFN,
the routed experts of a layer; lower layers first. The GPU gets the first so many steps, RAM the
next ones, the disk what is left. A GPU gets all attention, shared experts and the head, or nothing:
that is what the engine can run. Of all such cuts that keep the budgets the quickest is taken, so a
bigger budget only adds choices. The context shrinks before anything goes to the disk. Not here:
doing it (localr1.engine.load), or where the facts come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from offload.hardware import Gpu, Hardware
from offload.placement import Demands, Item, Kind, Placement, Prediction, Tier, Weight
from offload.predict import DEPTH, Traffic, predict, prompt_cost

MIB, GIB = 1 << 20, 1 << 30
LEAST_CONTEXT = 2048  # a conversation can live in this; below it the plan does not shrink
CONTEXT_STEP = 256
CHUNK = 32_768  # tokens of a prompt that pass a layer together, at most
CAPABILITY = (8, 0)  # the oldest GPU that the kernels are for

# What is neither weights nor cache. Measured: the program on the CPU (docs/placement.md). The GPU's
# figures are for torch's CUDA build on cards of 24 to 80 GB.
PROGRAM = 380 * MIB  # Python, torch, compiled kernels
PROGRAM_WITH_GPU = 2 * GIB
ABSORBED = 192  # prompts up to about this long take the form of attention that decoding takes
SCORES, MOST_SCORES = 9, 1 << 24  # bytes of a score with its softmax and mask; scores at a time
CUDA_CONTEXT = 512 * MIB
GPU_WORKSPACE = 512 * MIB

_ORDER = [Kind.ATTENTION, Kind.SHARED, Kind.HEAD, Kind.DENSE, Kind.ROUTED]
_WITH_ATTENTION = (Kind.ATTENTION, Kind.ROUTER)


@dataclass(frozen=True, slots=True)
class _Step:
    """Weights that move together."""

    kind: Kind
    weights: tuple[Weight, ...]
    nbytes: int
    read: float  # bytes, by a token
    prompt_read: float  # bytes, by a prompt
    operations: float  # by a prompt
    weighed: float  # the same, as much more or less as they cost on the CPU


@dataclass(frozen=True, slots=True)
class _Cut:
    """The first `gpu` steps to the GPU, those before `ram` to RAM, the others to the disk."""

    gpu: int
    ram: int
    fits: bool
    missing: int  # bytes of RAM, for it to fit


def plan(
    weights: Iterable[Weight], hardware: Hardware, context: int, demands: Demands
) -> Placement:
    """The best placement of `weights` for a context of `context` tokens, or as many as can be had.

    It uses the GPU with the most free memory, if the kernels are for it. Sizes in the result are
    bytes and never exceed what is free, unless `works` is False: then nothing can be done.
    """
    problem = _Problem(list(weights), hardware, demands)
    granted = context
    cut = problem.best(context)
    if cut is None or not cut.fits:
        smaller = problem.longest(context, lambda cut: cut is not None and cut.fits)
        if smaller is None and cut is None:
            smaller = problem.longest(context, lambda cut: cut is not None)
        if smaller is not None:
            granted = smaller
            cut = problem.best(granted)
    return problem.placement(cut, granted, context)


def usable_gpu(hardware: Hardware) -> Gpu | None:
    """The GPU that the plan is for: of those with kernels the one with the most free memory."""
    return max(
        (gpu for gpu in hardware.gpus if gpu.capability >= CAPABILITY),
        key=lambda gpu: gpu.free,
        default=None,
    )


def gpu_margin(gpu: Gpu) -> int:
    """VRAM left alone: allocators round up, and a desktop grows."""
    return max(256 * MIB, gpu.total // 32)


def ram_margin(room: int) -> int:
    """RAM left alone for the system and for what changes between planning and loading."""
    return 64 * MIB + room // 100


class _Problem:
    """One model on one machine, with running totals over its steps."""

    def __init__(self, weights: list[Weight], hardware: Hardware, demands: Demands) -> None:
        self.hardware, self.demands = hardware, demands
        self.gpu = usable_gpu(hardware)
        self.ram_room = min(hardware.ram_total, hardware.ram_available)
        self.weights = weights
        self.embedding = _step(Kind.EMBEDDING, _of(weights, Kind.EMBEDDING), hardware.isa)
        self.unused = _step(Kind.UNUSED, _of(weights, Kind.UNUSED), hardware.isa)
        self.steps = _steps(weights, hardware.isa)
        self.nbytes = _totals(self.steps, lambda s: s.nbytes)
        self.read = _totals(self.steps, lambda s: s.read)
        self.shared = _totals(self.steps, lambda s: s.read * (s.kind == Kind.SHARED))
        self.linear = _totals(
            self.steps, lambda s: s.read * (s.kind in (Kind.ATTENTION, Kind.HEAD))
        )
        self.prompt = _totals(self.steps, lambda s: s.prompt_read)
        self.operations = _totals(self.steps, lambda s: s.operations)
        self.weighed = _totals(self.steps, lambda s: s.weighed)
        self.attention = _totals(self.steps, lambda s: s.kind == Kind.ATTENTION)
        self.ffns = _totals(self.steps, lambda s: s.kind in (Kind.DENSE, Kind.ROUTED))
        self.routed = _totals(self.steps, lambda s: s.kind == Kind.ROUTED)

    def gpu_items(self, gpu: Gpu, cut: int, context: int) -> list[Item]:
        """What the first `cut` steps need of VRAM besides themselves."""
        cache = self.demands.cache_gpu * int(self.attention[cut]) * context
        work = GPU_WORKSPACE + self.demands.gpu_per_token * min(context, CHUNK)
        return [
            Item(self.demands.cache_name, cache),
            Item("workspace", work),
            Item("CUDA context", CUDA_CONTEXT),
            Item("margin", gpu_margin(gpu)),
        ]

    def ram_items(self, cut: int, context: int) -> list[Item]:
        """What lies in RAM besides weights when the first `cut` steps are on the GPU."""
        demands = self.demands
        layers = int(self.attention[-1] - self.attention[cut])
        return [
            Item(demands.cache_name, demands.cache_ram * layers * context),
            Item("workspace", _workspace(demands, min(context, CHUNK), layers > 0)),
            Item("program", PROGRAM_WITH_GPU if cut else PROGRAM),
            Item("margin", ram_margin(self.ram_room)),
        ]

    def best(self, context: int) -> _Cut | None:
        """The quickest cut for this context, those that fit first; None where none works."""
        found: list[tuple[bool, float, _Cut]] = []
        for gpu in self._gpu_cuts():
            if gpu and self._gpu_need(gpu, context) > self._gpu_room():
                break
            cut = self._cut(gpu, context)
            if cut is not None:
                found.append((cut.fits, self._predict(cut).decode_tps, cut))
        return max(found, key=lambda row: row[:2])[2] if found else None

    def _gpu_cuts(self) -> list[int]:
        """How many steps a GPU may get: none, or all but some FFNs."""
        least = sum(step.kind not in (Kind.DENSE, Kind.ROUTED) for step in self.steps)
        return [0, *range(least, len(self.steps) + 1)] if self.gpu else [0]

    def longest(self, context: int, good: Callable[[_Cut | None], bool]) -> int | None:
        """The longest context below `context` whose best cut is `good`; None if none is."""
        low = -(-LEAST_CONTEXT // CONTEXT_STEP)
        high = (context - 1) // CONTEXT_STEP
        if high < low or not good(self.best(low * CONTEXT_STEP)):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if good(self.best(middle * CONTEXT_STEP)):
                low = middle
            else:
                high = middle - 1
        return low * CONTEXT_STEP

    def _gpu_room(self) -> int:
        return self.gpu.free if self.gpu else 0

    def _gpu_need(self, cut: int, context: int) -> int:
        assert self.gpu is not None
        fixed = sum(item.nbytes for item in self.gpu_items(self.gpu, cut, context))
        return fixed + int(self.nbytes[cut])

    def _cut(self, gpu: int, context: int) -> _Cut | None:
        """RAM filled behind the GPU's steps; None where not even the buffers have room."""
        fixed = sum(item.nbytes for item in self.ram_items(gpu, context))
        left = self.ram_room - fixed
        if left < 0:
            return None
        left -= self.embedding.nbytes
        wanted = int(self.nbytes[-1] - self.nbytes[gpu])
        if left < 0:
            return _Cut(gpu, gpu, False, wanted - left)
        ram = bisect_right(self.nbytes, self.nbytes[gpu] + left) - 1
        return _Cut(gpu, ram, left >= wanted, max(0, wanted - left))

    def _embedding_tier(self, cut: _Cut, context: int) -> Tier:
        fixed = sum(item.nbytes for item in self.ram_items(cut.gpu, context))
        return Tier.RAM if fixed + self.embedding.nbytes <= self.ram_room else Tier.DISK

    def _predict(self, cut: _Cut) -> Prediction:
        return predict(self._traffic(cut), self.hardware, self.gpu if cut.gpu else None)

    def _traffic(self, cut: _Cut) -> Traffic:
        gpu, ram = cut.gpu, cut.ram
        on_cpu = 1 - self.routed[gpu] / self.routed[-1] if self.routed[-1] else 0.0
        hidden = self.shared[gpu] * on_cpu
        layers = int(self.attention[gpu])
        cache = self.demands.cache_gpu * layers * DEPTH
        return Traffic(
            gpu_bytes=self.read[gpu] - hidden + cache,
            gpu_hidden_bytes=hidden,
            ram_bytes=self.read[ram] - self.read[gpu] + self.embedding.read,
            linear_bytes=self.linear[ram] - self.linear[gpu],
            disk_bytes=self.read[-1] - self.read[ram],
            gpu_layers=layers,
            cpu_layers=int(self.attention[-1]) - layers,
            handoffs=max(0, layers - int(self.ffns[gpu])),
            decode_operations=self.demands.decode_operations,
            prompt_operations=self.demands.prompt_operations,
            prompt_ram_bytes=self.prompt[ram] - self.prompt[gpu],
            prompt_gpu_bytes=self.prompt[gpu],
            prompt_disk_bytes=self.prompt[-1] - self.prompt[ram],
            cpu_operations=self.weighed[-1] - self.weighed[gpu],
            gpu_operations=self.operations[gpu],
            stored_bytes=int(self.nbytes[ram]) + self.embedding.nbytes,
            uploaded_bytes=int(self.nbytes[gpu]),
        )

    def placement(self, cut: _Cut | None, context: int, asked: int) -> Placement:
        """The plan in full. Without a cut everything stays on the disk, and nothing works."""
        works = cut is not None
        if cut is None:
            fixed = sum(item.nbytes for item in self.ram_items(0, context))
            missing = fixed + int(self.nbytes[-1]) + self.embedding.nbytes - self.ram_room
            cut = _Cut(0, 0, False, missing)
        embedding = self._embedding_tier(cut, context)
        # A mapped file is brought in whole; with a GPU only what the CPU reads of it.
        needed = sum(item.nbytes for item in self.ram_items(cut.gpu, context))
        needed += int(self.nbytes[-1]) + self.embedding.nbytes + self.unused.nbytes
        spare = cut.gpu == 0 and needed <= self.ram_room
        tiers: dict[str, Tier] = {}
        for number, step in enumerate(self.steps):
            tier = _tier(number, cut)
            tiers |= {weight.name: tier for weight in step.weights}
        tiers |= {weight.name: embedding for weight in self.embedding.weights}
        tiers |= {w.name: Tier.RAM if spare else Tier.DISK for w in self.unused.weights}
        gpu = self.gpu_items(self.gpu, cut.gpu, context) if self.gpu and cut.gpu else []
        placed = {tier: self._items(tiers, tier) for tier in Tier}
        return Placement(
            tiers=tiers,
            context=context,
            asked_context=asked,
            gpu=(*placed[Tier.GPU], *_some(gpu)),
            ram=(*placed[Tier.RAM], *_some(self.ram_items(cut.gpu, context))),
            disk=tuple(placed[Tier.DISK]),
            gpu_room=self._gpu_room(),
            ram_room=self.ram_room,
            fits=works and cut.fits,
            works=works,
            shortfall=cut.missing,
            prediction=self._predict(cut),
        )

    def _items(self, tiers: dict[str, Tier], tier: Tier) -> list[Item]:
        """The weights of a tier by what they are for."""
        sizes: dict[Kind, int] = dict.fromkeys(Kind, 0)
        for weight in self.weights:
            if tiers[weight.name] is tier:
                sizes[weight.kind] += weight.nbytes
        return [Item(kind.value, nbytes) for kind, nbytes in sizes.items() if nbytes]


def _workspace(demands: Demands, tokens: int, attention: bool) -> int:
    """Bytes of RAM for a prompt of `tokens`; with its attention, or with its experts only."""
    if not attention:
        return demands.hybrid_per_token * tokens
    expanded = demands.ram_per_token * tokens + SCORES * min(tokens * tokens, MOST_SCORES)
    return max(expanded, demands.absorbed_per_token * min(tokens, ABSORBED))


def _some(items: list[Item]) -> list[Item]:
    return [item for item in items if item.nbytes]


def _tier(number: int, cut: _Cut) -> Tier:
    if number < cut.gpu:
        return Tier.GPU
    return Tier.RAM if number < cut.ram else Tier.DISK


def _of(weights: list[Weight], *kinds: Kind) -> list[Weight]:
    return [weight for weight in weights if weight.kind in kinds]


def _steps(weights: list[Weight], isa: str) -> list[_Step]:
    """All steps in the order in which fast memory is given out."""
    steps = []
    for kind in _ORDER:
        kinds = _WITH_ATTENTION if kind == Kind.ATTENTION else (kind,)
        layers: dict[int, list[Weight]] = {}
        for weight in _of(weights, *kinds):
            # Norms outside the layers, of the head, go with the first attention.
            layers.setdefault(max(weight.layer, 0), []).append(weight)
        steps += [_step(kind, layers[layer], isa) for layer in sorted(layers)]
    return steps


def _step(kind: Kind, weights: Sequence[Weight], isa: str) -> _Step:
    prompts = [prompt_cost(weight, isa) for weight in weights]
    return _Step(
        kind=kind,
        weights=tuple(weights),
        nbytes=sum(weight.nbytes for weight in weights),
        read=sum(weight.nbytes * weight.read_fraction for weight in weights),
        prompt_read=sum(row[0] for row in prompts),
        operations=sum(row[1] for row in prompts),
        weighed=sum(row[2] for row in prompts),
    )


def _totals(steps: list[_Step], value: Callable[[_Step], float]) -> list[float]:
    """Running totals: entry n is the sum over the first n steps."""
    return [0, *accumulate(value(step) for step in steps)]


def with_room(hardware: Hardware, ram: int | None, vram: int | None) -> Hardware:
    """`hardware` with no more RAM and VRAM than a user allows, in bytes; None: what is free."""
    if ram is not None:
        hardware = replace(hardware, ram_available=ram, ram_total=max(ram, hardware.ram_total))
    if vram is not None:
        gpus = tuple(replace(gpu, free=min(gpu.free, vram)) for gpu in hardware.gpus if vram)
        hardware = replace(hardware, gpus=gpus)
    return hardware
