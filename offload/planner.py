"""Where everything goes: `plan`, a pure function of a model's weights and a machine.

Weights are placed in steps: the attention of a layer, its shared experts, the head, a dense FFN,
the routed experts of a layer; lower layers first. The GPU gets the first so many steps, RAM the
next ones, the disk what is left. A GPU gets all attention, shared experts and the head: FFNs go to
RAM first. Only where these do not fit either, the first layers lie in RAM as a whole, as few as
will do. Of all such cuts that keep the budgets the quickest is taken, or none of the GPU where the
CPU alone is quicker. The context shrinks before anything goes to the disk. Not here: doing it
(localr1.engine.load), or where the facts come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from offload.hardware import Gpu, Hardware
from offload.placement import Demands, Item, Kind, Placement, Prediction, Tier, Weight
from offload.predict import DEPTH, PROMPT, Traffic, predict, streams_from
from offload.steps import Order, Step, least_bytes, step, steps
from offload.workspace import (
    CUDA_CONTEXT,
    GPU_WORKSPACE,
    PROGRAM,
    PROGRAM_WITH_GPU,
    gpu_margin,
    ram_margin,
    ram_workspace,
)

LEAST_CONTEXT = 2048  # a conversation can live in this; below it the plan does not shrink
CONTEXT_STEP = 256
CHUNK = 32_768  # tokens of a prompt that pass a layer together, at most
STREAMED_EXPERTS = "streamed experts"  # an item: those that come to the GPU for prompts
CAPABILITY = (8, 0)  # the oldest GPU that the kernels are for


@dataclass(frozen=True, slots=True)
class _Cut:
    """The first `gpu` steps to the GPU, those before `ram` to RAM, the others to the disk."""

    order: Order
    gpu: int
    ram: int
    fits: bool
    missing: int  # bytes of RAM, for it to fit


def plan(
    weights: Iterable[Weight],
    hardware: Hardware,
    context: int,
    demands: Demands,
    prefer_gpu: bool = False,
    owned: bool = False,
) -> Placement:
    """The best placement of `weights` for a context of `context` tokens, or as many as can be had.

    It uses the GPU with the most free memory, if the kernels are for it and it makes the model
    quicker, or with `prefer_gpu` even if not. `owned` is how weights stay in RAM, which decides
    how fast they are read. Sizes in the result are bytes and never exceed what
    is free, unless `works` is False: then nothing can be done.
    """
    problem = _Problem(list(weights), hardware, demands, prefer_gpu, owned)
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


class _Problem:
    """One model on one machine."""

    def __init__(
        self, weights: list[Weight], hardware: Hardware, demands: Demands, prefer_gpu: bool,
        owned: bool,
    ) -> None:  # fmt: skip
        self.hardware, self.demands = hardware, demands
        self.prefer_gpu, self.owned = prefer_gpu, owned
        self.gpu = usable_gpu(hardware)
        self.ram_room = min(hardware.ram_total, hardware.ram_available)
        self.weights = weights
        self.embedding = step(Kind.EMBEDDING, -1, _of(weights, Kind.EMBEDDING), hardware.isa)
        self.unused = step(Kind.UNUSED, -1, _of(weights, Kind.UNUSED), hardware.isa)
        self.steps = steps(weights, hardware.isa)
        self.nbytes = sum(step.nbytes for step in self.steps)
        self.n_layers = sum(step.kind == Kind.ATTENTION for step in self.steps)
        self.least_bytes = least_bytes(self.steps, self.n_layers) if self.gpu else []
        self._orders: dict[int, Order] = {}

    def order(self, cpu_layers: int) -> Order:
        """The steps where so many layers are kept from the GPU."""
        if cpu_layers not in self._orders:
            self._orders[cpu_layers] = Order(self.steps, cpu_layers)
        return self._orders[cpu_layers]

    def gpu_items(self, layers: int, context: int) -> list[Item]:
        """What the GPU needs besides weights when it runs so many layers; nothing for none."""
        if self.gpu is None or not layers:
            return []
        cache = self.demands.cache_gpu * layers * context
        work = GPU_WORKSPACE + self.demands.gpu_piece
        work += self.demands.prompt_on_gpu(min(context, CHUNK))
        return [
            Item(self.demands.cache_name, cache),
            Item("workspace", work),
            Item("CUDA context", CUDA_CONTEXT),
            Item("margin", gpu_margin(self.gpu)),
        ]

    def ram_items(
        self, order: Order, gpu: int, context: int, streams: int | None = None
    ) -> list[Item]:
        """What lies in RAM besides weights when the first `gpu` steps are on the GPU, to which
        experts come for prompts of `streams` tokens or more.
        """
        demands = self.demands
        layers = int(order.attention[-1] - order.attention[gpu])
        asked = gpu > 0 and order.ffns[-1] > order.ffns[gpu]
        work = ram_workspace(demands, min(context, CHUNK), layers > 0, asked, streams)
        return [
            Item(demands.cache_name, demands.cache_ram * layers * context),
            Item("workspace", work),
            Item("program", PROGRAM_WITH_GPU if gpu > 0 else PROGRAM),
            Item("margin", ram_margin(self.ram_room)),
        ]

    def best(self, context: int) -> _Cut | None:
        """The quickest cut for this context, those that fit first; None where none works."""
        cuts = [self._cut(self.order(0), 0, context), *self._gpu_cuts(context)]

        def rank(cut: _Cut) -> tuple[bool, bool, float]:
            preferred = self.prefer_gpu and cut.gpu > 0
            return cut.fits, preferred, self._predict(cut).decode_tps

        return max((cut for cut in cuts if cut is not None), key=rank, default=None)

    def _gpu_cuts(self, context: int) -> list[_Cut | None]:
        """Those with a GPU, and with as few layers on the CPU as fit; if none do, as VRAM allows.

        The more steps the GPU gets the less is left for RAM: if any cut fits, the last one does.
        But a layer's routed experts do not take the room in which prompts would stream the others.
        """
        found: list[_Cut | None] = []
        for cpu_layers, least in enumerate(self.least_bytes):
            items = self.gpu_items(self.n_layers - cpu_layers, context)
            left = self._gpu_room() - sum(item.nbytes for item in items)
            hopeless = self.nbytes > left + self.ram_room
            if least > left or (found and hopeless):
                continue
            order = self.order(cpu_layers)
            most = min(bisect_right(order.gpu_nbytes, left) - 1, order.most)
            left -= self.demands.streaming(min(context, CHUNK))
            beside = bisect_right(order.gpu_nbytes, left) - 1
            last = self._cut(order, most, context)
            if order.n_unrouted <= beside < most < len(order.steps):
                roomy = self._cut(order, beside, context)
                most, last = (beside, roomy) if roomy and roomy.fits else (most, last)
            fits = last is not None and last.fits
            if fits or not found:
                numbers = range(order.least, most)
                found = [*(self._cut(order, number, context) for number in numbers), last]
            if fits:
                break
        return found

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

    def _cut(self, order: Order, gpu: int, context: int) -> _Cut | None:
        """RAM filled behind the GPU's steps; None where not even the buffers have room."""
        fixed = sum(item.nbytes for item in self.ram_items(order, gpu, context))
        left = self.ram_room - fixed
        if left < 0:
            return None
        left -= self.embedding.nbytes
        wanted = int(order.nbytes[-1] - order.nbytes[gpu])
        if left < 0:
            return _Cut(order, gpu, gpu, False, wanted - left)
        ram = bisect_right(order.nbytes, order.nbytes[gpu] + left) - 1
        return _Cut(order, gpu, ram, left >= wanted, max(0, wanted - left))

    def _embedding_tier(self, cut: _Cut, context: int) -> Tier:
        fixed = sum(item.nbytes for item in self.ram_items(cut.order, cut.gpu, context))
        return Tier.RAM if fixed + self.embedding.nbytes <= self.ram_room else Tier.DISK

    def _predict(self, cut: _Cut, streams: int | None = None) -> Prediction:
        gpu, traffic = self.gpu if cut.gpu else None, self._traffic(cut)
        if streams is not None and streams <= PROMPT:
            routed = _routed(cut)
            read = sum(step.prompt_read for step in routed)
            weighed = sum(step.weighed for step in routed)
            traffic = replace(
                traffic,
                streamed_bytes=sum(step.nbytes for step in routed),
                prompt_ram_bytes=traffic.prompt_ram_bytes - read,
                cpu_operations=traffic.cpu_operations - weighed,
            )
        return predict(traffic, self.hardware, gpu, self.owned)

    def _traffic(self, cut: _Cut) -> Traffic:
        o, gpu, ram = cut.order, cut.gpu, cut.ram
        on_cpu = 1 - o.routed[gpu] / o.routed[-1] if o.routed[-1] else 0.0
        hidden = o.shared[gpu] * on_cpu
        layers, extra = int(o.attention[gpu]), o.gpu_nbytes[gpu] - o.nbytes[gpu]
        cache = self.demands.cache_gpu * layers * DEPTH
        return Traffic(
            gpu_bytes=o.read[gpu] + extra - hidden + cache,
            gpu_hidden_bytes=hidden,
            ram_bytes=o.read[ram] - o.read[gpu] + self.embedding.read,
            linear_bytes=o.linear[ram] - o.linear[gpu],
            disk_bytes=o.read[-1] - o.read[ram],
            gpu_layers=layers,
            routed=bool(o.routed[-1]),
            cpu_layers=self.n_layers - layers,
            handoffs=max(0, layers - int(o.ffns[gpu])),
            decode_operations=self.demands.decode_operations,
            prompt_operations=self.demands.prompt_operations,
            prompt_ram_bytes=o.prompt[ram] - o.prompt[gpu],
            prompt_gpu_bytes=o.prompt[gpu] + extra,
            prompt_disk_bytes=o.prompt[-1] - o.prompt[ram],
            cpu_operations=o.weighed[-1] - o.weighed[gpu],
            gpu_operations=o.operations[gpu],
            streamed_bytes=0.0,
            stored_bytes=int(o.nbytes[ram]) + self.embedding.nbytes,
            uploaded_bytes=int(o.gpu_nbytes[gpu]),
        )

    def placement(self, cut: _Cut | None, context: int, asked: int) -> Placement:
        """The plan in full. Without a cut everything stays on the disk, and nothing works."""
        works = cut is not None
        if cut is None:
            fixed = sum(item.nbytes for item in self.ram_items(self.order(0), 0, context))
            missing = fixed + self.nbytes + self.embedding.nbytes - self.ram_room
            cut = _Cut(self.order(0), 0, 0, False, missing)
        embedding = self._embedding_tier(cut, context)
        gpu = self.gpu_items(int(cut.order.attention[cut.gpu]), context)
        streams = self._streams_from(cut, context, gpu)
        ram = self.ram_items(cut.order, cut.gpu, context, streams)
        # A mapped file is brought in whole; with a GPU only what the CPU reads of it.
        needed = sum(item.nbytes for item in ram)
        needed += self.nbytes + self.embedding.nbytes + self.unused.nbytes
        spare = cut.gpu == 0 and needed <= self.ram_room
        tiers: dict[str, Tier] = {}
        for number, placed_step in enumerate(cut.order.steps):
            tier = _tier(number, cut)
            tiers |= {weight.name: tier for weight in placed_step.weights}
        tiers |= {weight.name: embedding for weight in self.embedding.weights}
        tiers |= {w.name: Tier.RAM if spare else Tier.DISK for w in self.unused.weights}
        if streams is not None:
            gpu.append(Item(STREAMED_EXPERTS, self.demands.streaming(min(context, CHUNK))))
        placed = {tier: self._items(tiers, tier) for tier in Tier}
        return Placement(
            tiers=tiers,
            context=context,
            asked_context=asked,
            gpu=(*placed[Tier.GPU], *_some(gpu)),
            ram=(*placed[Tier.RAM], *_some(ram)),
            disk=tuple(placed[Tier.DISK]),
            gpu_room=self._gpu_room(),
            ram_room=self.ram_room,
            fits=works and cut.fits,
            works=works,
            shortfall=cut.missing,
            prediction=self._predict(cut, streams),
            streams_from=streams,
        )

    def _streams_from(self, cut: _Cut, context: int, gpu: list[Item]) -> int | None:
        """The shortest prompt for which experts come to the GPU, where the plan leaves room for
        that: it costs decoding nothing.
        """
        routed = [weight for step in _routed(cut) for weight in step.weights]
        if self.gpu is None or not (cut.gpu and cut.fits and routed and self.demands.gpu_streaming):
            return None
        used = cut.order.gpu_nbytes[cut.gpu] + sum(item.nbytes for item in gpu)
        tokens = streams_from(routed, self.hardware, self.gpu)
        room = used + self.demands.streaming(min(context, CHUNK)) <= self._gpu_room()
        return tokens if room and tokens <= min(context, CHUNK) else None

    def _items(self, tiers: dict[str, Tier], tier: Tier) -> list[Item]:
        """The weights of a tier by what they are for."""
        sizes: dict[Kind, int] = dict.fromkeys(Kind, 0)
        for weight in self.weights:
            if tiers[weight.name] is tier:
                sizes[weight.kind] += weight.bytes_in(tier)
        return [Item(kind.value, nbytes) for kind, nbytes in sizes.items() if nbytes]


def _routed(cut: _Cut) -> list[Step]:
    """Experts that lie in RAM."""
    return [step for step in cut.order.steps[cut.gpu : cut.ram] if step.kind == Kind.ROUTED]


def _some(items: list[Item]) -> list[Item]:
    return [item for item in items if item.nbytes]


def _tier(number: int, cut: _Cut) -> Tier:
    if number < cut.gpu:
        return Tier.GPU
    return Tier.RAM if number < cut.ram else Tier.DISK


def _of(weights: list[Weight], *kinds: Kind) -> list[Weight]:
    return [weight for weight in weights if weight.kind in kinds]


def with_room(hardware: Hardware, ram: int | None, vram: int | None) -> Hardware:
    """`hardware` with no more RAM and VRAM than a user allows, in bytes; None: what is free."""
    if ram is not None:
        hardware = replace(hardware, ram_available=ram, ram_total=max(ram, hardware.ram_total))
    if vram is not None:
        gpus = tuple(replace(gpu, free=min(gpu.free, vram)) for gpu in hardware.gpus if vram)
        hardware = replace(hardware, gpus=gpus)
    return hardware
