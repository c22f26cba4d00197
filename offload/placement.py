"""Where every byte of a model lies: the words of the planner, and the plan as it comes out.

The placement of a weight is its tier. Not here: how a plan is found (offload.planner), what speed
it promises (offload.predict).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class Tier(StrEnum):
    """What a weight is read from when it is needed."""

    GPU = "gpu"
    RAM = "ram"
    DISK = "disk"  # memory-mapped, and brought in again for every token that wants it


class Kind(StrEnum):
    """What a weight is for, in the order in which fast memory is given out."""

    EMBEDDING = "embedding"  # rows are looked up in RAM, whatever else lies on a GPU
    ROUTER = "router and norms"
    ATTENTION = "attention"
    SHARED = "shared experts"
    HEAD = "head"
    DENSE = "dense layers"
    ROUTED = "routed experts"
    UNUSED = "not used"  # the file's header and its multi-token-prediction layer


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a model, by its GGUF name (`blk.N.` tells its layer)."""

    name: str
    nbytes: int
    read_fraction: float  # share of its bytes that one decoded token reads
    kind: Kind
    values: int = 0  # numbers that it holds: the arithmetic of a prompt; 0 where none is done
    gpu_extra: int = 0  # bytes that a GPU holds more of it, where it needs it in another form

    def bytes_in(self, tier: Tier) -> int:
        """What it takes there."""
        return self.nbytes + (self.gpu_extra if tier is Tier.GPU else 0)

    @property
    def layer(self) -> int:
        """The layer it belongs to; -1 for none."""
        return int(self.name.split(".")[1]) if self.name.startswith("blk.") else -1


def layers_named(first: int, end: int) -> str:
    """`layers 0-11`, `layer 12`, `no layer`: those from `first` up to, and without, `end`."""
    if end - first < 2:
        return f"layer {first}" if end > first else "no layer"
    return f"layers {first}-{end - 1}"


@dataclass(frozen=True, slots=True)
class Demands:
    """What a model asks of memory and arithmetic besides its weights. Bytes."""

    n_layers: int
    cache_name: str  # "MLA cache" or "KV cache"
    cache_gpu: int  # of a token in one layer, on a GPU
    cache_gpu_8bit: int  # the same where 8 bits a value were asked for
    cache_ram: int  # the same on the CPU
    gpu_per_token: int  # activations of a prompt's token on a GPU
    halved_from: int  # tokens of a prompt of which only a half at a time is beside hidden states
    gpu_piece: int  # what the part that needs most makes there of a piece of a prompt
    gpu_streaming: int  # more than that where experts come there for a long prompt; 0: none do
    embedded_per_token: int  # a prompt's rows on their way to a GPU
    ram_per_token: int  # activations of a prompt's token where attention runs on the CPU
    hybrid_per_token: int  # what a GPU and experts on the CPU tell each other of one
    experts_per_token: int  # and what those make of it
    absorbed_per_token: int  # of the first ones, in the form of attention that short prompts take
    decode_operations: int  # of one query with one key in one layer, all heads; float
    prompt_operations: int  # the same in the form that prompts take

    def prompt_on_gpu(self, tokens: int) -> int:
        """Activations of a prompt of up to so many tokens: hidden states beside as much again."""
        whole = min(tokens, self.halved_from - 1)
        return self.gpu_per_token * max(whole, tokens * 3 // 4)

    def streaming(self, tokens: int) -> int:
        """What a GPU needs more where experts come to it for such prompts: these are read whole,
        and their hidden states lie beside norms and the experts' answers. 0: none do.
        """
        if not self.gpu_streaming:
            return 0
        return (
            self.gpu_streaming + self.gpu_per_token * tokens * 3 // 2 - self.prompt_on_gpu(tokens)
        )

    def prompt_beside_gpu(self, tokens: int) -> int:
        """RAM that a prompt of up to so many tokens takes where only experts run on the CPU: they
        are at work on a half at a time.
        """
        at_once = max(min(tokens, self.halved_from - 1), tokens // 2)
        return self.hybrid_per_token * tokens + self.experts_per_token * at_once

    def in_8_bits(self) -> Demands:
        """With a GPU's cache in 8 bits a value."""
        return replace(self, cache_gpu=self.cache_gpu_8bit)


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the plan: so many bytes for this."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Speeds in tokens/second. `decode_limit_tps` is what the memories' bandwidths allow."""

    decode_tps: float
    decode_limit_tps: float
    decode_limit: str  # what binds: "RAM bandwidth", "VRAM bandwidth" or "disk bandwidth"
    prefill_tps: float
    prefill_limit: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan. `fits`: nothing that a token reads lies on the disk, and all of it has its room.

    `shortfall` is the RAM that is missing for that, in bytes; `works`: cache, buffers and
    program have their room, so that the model can be run from the disk at least.
    """

    tiers: Mapping[str, Tier]
    context: int
    asked_context: int
    gpu: tuple[Item, ...]
    ram: tuple[Item, ...]
    disk: tuple[Item, ...]
    gpu_room: int
    ram_room: int
    fits: bool
    works: bool
    shortfall: int
    prediction: Prediction
    streams_from: int | None = None  # tokens of prompts for which experts come to the GPU

    def tier(self, name: str) -> Tier:
        """Where the weight `name` lies; KeyError for one that the model has not."""
        return self.tiers[name]

    @property
    def cpu_layers(self) -> int:
        """How many of the first layers lie in RAM as a whole, their attention too, while a GPU runs
        the others; 0 where none is used.
        """
        there = [
            int(name.split(".")[1])
            for name, tier in self.tiers.items()
            if name.startswith("blk.") and ".attn_" in name and tier is Tier.GPU
        ]
        return min(there, default=0)

    @property
    def gpu_bytes(self) -> int:
        """All that the plan takes of VRAM, margin included."""
        return sum(item.nbytes for item in self.gpu)

    @property
    def ram_bytes(self) -> int:
        """All that the plan takes of RAM, margin included."""
        return sum(item.nbytes for item in self.ram)

    @property
    def disk_bytes(self) -> int:
        """What stays on the disk and is read from there."""
        return sum(item.nbytes for item in self.disk)
