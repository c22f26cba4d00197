"""Where the weights of a synthetic run lie, what a token reads there, and how fast that could go.

Not here: running it (synthetic_run.py), what is made of the times (bench_synthetic.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from localr1.errors import DoesNotFit
from localr1.models.inventory import Inventory
from offload.hardware import Gpu, Hardware, on_paper
from offload.placement import Kind, Placement, Tier
from offload.planner import CHUNK, STREAMED_EXPERTS, plan

_GIB = 1 << 30
_CARDS = {"RTX 4090": 1008e9, "RTX 3090": 936e9}  # bytes/second by the data sheet; 24 GiB each
_MATRICES = (Kind.ATTENTION, Kind.SHARED, Kind.HEAD, Kind.DENSE, Kind.ROUTED)


@dataclass(frozen=True, slots=True)
class InRam:
    """The weights whose reading from RAM is measured: `names`, and what they are called."""

    title: str
    names: frozenset[str]


def in_ram(stock: Inventory, placed: Placement, on_gpu: bool) -> InRam:
    """Routed experts; of a dense model the FFNs that a GPU has no room for, or, without one, all
    its matrices.
    """
    if _routed(stock):
        return InRam("routed experts", _names(stock, Kind.ROUTED))
    if not on_gpu:
        return InRam("weights", _names(stock, *_MATRICES))
    ffns = _names(stock, Kind.DENSE)
    return InRam("FFNs", frozenset(n for n in ffns if placed.tier(n) is Tier.RAM))


def _names(stock: Inventory, *kinds: Kind) -> frozenset[str]:
    return frozenset(weight.name for weight in stock.weights if weight.kind in kinds)


def _routed(stock: Inventory) -> bool:
    return any(weight.kind == Kind.ROUTED for weight in stock.weights)


def planned(stock: Inventory, gpu: Gpu | None, found: Hardware, context: int) -> Placement:
    """The plan for what is run, in RAM that holds it all: on the GPU all but the routed experts, or
    of a dense model as many FFNs as have room.

    Raises DoesNotFit where the GPU has no room for what must be there.
    """
    ram = max(found.ram_available, stock.nbytes + 64 * _GIB)
    roomy = replace(found, gpus=(gpu,) if gpu else (), ram_total=ram, ram_available=ram)
    placed = _plan(stock, roomy, context)
    if gpu is None:
        return placed
    free = {Kind.ROUTED, Kind.EMBEDDING, Kind.UNUSED}  # to lie elsewhere
    free |= set() if _routed(stock) else {Kind.DENSE}
    left = [w for w in stock.weights if w.kind not in free and placed.tier(w.name) != Tier.GPU]
    if left or placed.context < context:
        all_fits = _plan(stock, _with_free(roomy, 1 << 50), context)
        need = _without(all_fits, *(kind.value for kind in free)) / _GIB
        raise DoesNotFit(
            f"this needs {need:.1f} GiB of VRAM and {gpu.free / _GIB:.1f} GiB is free",
            "a smaller --context or --quant, or --cache 8bit, needs less; --vram 0 runs on the CPU",
        )
    if not _routed(stock):
        return placed
    streaming = stock.demands.streaming(min(context, CHUNK))
    need = _without(placed, Kind.ROUTED.value, STREAMED_EXPERTS) + streaming
    return _plan(stock, _with_free(roomy, min(need, gpu.free)), context)


def _plan(stock: Inventory, found: Hardware, context: int) -> Placement:
    """With weights in huge pages, as here, and on the GPU even where the CPU is quicker."""
    return plan(stock.weights, found, context, stock.demands, prefer_gpu=True, owned=True)


def _with_free(found: Hardware, free: int) -> Hardware:
    return replace(found, gpus=tuple(replace(gpu, free=free) for gpu in found.gpus))


def _without(placed: Placement, *names: str) -> int:
    """Bytes on the GPU that are none of these items'."""
    return sum(item.nbytes for item in placed.gpu if item.name not in names)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a token reads: of what is measured in `ram`; of what nothing else can be done
    beside, the cache included; of shared experts, which a GPU reads while the CPU reads the routed.
    """

    ram: float
    alone: float
    shared: float

    def seconds(self, ram_bandwidth: float, vram_bandwidth: float | None) -> float:
        """The least that memories of so many bytes/second take; None: all lies in RAM."""
        if vram_bandwidth is None:
            return (self.ram + self.alone + self.shared) / ram_bandwidth
        return self.ram / ram_bandwidth + self.alone / vram_bandwidth


def traffic(stock: Inventory, kept: InRam, depth: int, stub: bool = False) -> Traffic:
    """Of a token behind `depth` others; with `stub` nothing of `kept` is read."""
    ram = shared = alone = 0.0
    for weight in stock.weights:
        read = weight.nbytes * weight.read_fraction
        if weight.name in kept.names:
            ram += 0 if stub else read
        elif weight.kind == Kind.SHARED:
            shared += read
        else:
            alone += read
    return Traffic(ram, alone + stock.demands.cache_gpu * stock.demands.n_layers * depth, shared)


def projections(
    stock: Inventory, found: Hardware, context: int, depth: int
) -> Iterator[dict[str, Any]]:
    """Decode on cards that are not here, with RAM as fast as this machine's, and the RAM that the
    model needs beside them, which this machine need not have: the limit behind `depth` tokens, and
    what the plan expects behind DEPTH of them.
    """
    for name, bandwidth in _CARDS.items():
        card = on_paper(vram=24 * _GIB, ram=1 << 50, vram_bandwidth=bandwidth).gpus[0]
        roomy = replace(card, free=1 << 50)
        try:
            placed, fits = planned(stock, card, found, context), True
        except DoesNotFit:
            placed, fits = planned(stock, roomy, found, context), False
        read = traffic(stock, in_ram(stock, placed, True), depth)
        seconds = read.seconds(found.ram_bandwidth, bandwidth)
        yield {
            "card": name,
            "decode_limit": 1 / seconds,
            "decode": placed.prediction.decode_tps,
            "ram": placed.ram_bytes,
            "fits": fits,
        }
