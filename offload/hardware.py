"""A machine as plain facts: bytes, and bytes a second; measured, or typical ones of a machine that
is not here.

What the planner decides from. Not here: how a GPU (offload.gpus) or a disk (offload.disk) is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from offload import disk, gpus, memory
from offload.gpus import Gpu

__all__ = ["Gpu", "Hardware", "Probes", "from_json", "measured", "on_paper", "refreshed", "to_json"]

Report: TypeAlias = Callable[[str, int, int], None]

_GIB = 1 << 30
AMX = "avx512_vnni+amx"  # the tier where prompts are read on AMX
ZEN = "avx512_vnni+zen"  # the tier on a core of AMD's, whose int8 peak is half of an Intel core's


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine. Sizes in bytes, speeds in bytes/second, under the limits on this process."""

    gpus: tuple[Gpu, ...]
    ram_total: int
    ram_available: int  # without swapping; page cache counts as available
    ram_bandwidth: float  # reads by `threads` threads
    int8_ops: float  # operations/second, a multiplication and its addition are two; `threads`
    threads: int  # that the CPU kernels will use
    cores: int  # physical, that this process may use
    numa_nodes: int
    isa: str  # the CPU kernels' tier: "avx512_vnni", AMX, ZEN or "portable"
    disk_bandwidth: float  # reads of the disk that holds the models
    disk_free: int
    assumed: frozenset[str]  # fields that are typical values, not measured ones; "gpu.pcie" too

    def __post_init__(self) -> None:
        for name, value in [
            *_numbers(self),
            *(pair for gpu in self.gpus for pair in _numbers(gpu)),
        ]:
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}")


def _numbers(facts: Hardware | Gpu) -> list[tuple[str, float]]:
    values = ((name, getattr(facts, name)) for name in facts.__slots__)
    return [(name, value) for name, value in values if isinstance(value, int | float)]


@dataclass(frozen=True, slots=True)
class Probes:
    """What somebody else knows to find out about the CPU. Speeds as in Hardware."""

    threads: int
    cores: int
    isa: str
    ram_bandwidth: Callable[[], float]
    int8_ops: Callable[[], float]


# What is taken for a machine on paper: from the least memory up, so that more of it never looks
# slower. A card reads about 0.92 of what its data sheet says, RAM about 0.8.
_CARDS = (  # GiB of VRAM, bytes/second
    (0, 0.25e12),  # RTX 4060, 8 GB: 272 GB/s
    (10, 0.33e12),  # RTX 3060, 12 GB: 360
    (15, 0.41e12),  # RTX 5060 Ti, 16 GB: 448
    (20, 0.86e12),  # RTX 3090, 24 GB: 936; a 4090 has 1,008, and cards of 48 GB 770 to 960
    (60, 1.8e12),  # A100, 80 GB: 1,935 to 2,039
)
_HOSTS = (  # GiB of RAM, bytes/second, cores
    (0, 40e9, 8),  # a laptop: two channels of DDR4-3200, 51 GB/s
    (40, 60e9, 12),  # a desktop: two channels of DDR5-4800, 77 GB/s, with four modules
    (200, 160e9, 32),  # a Xeon of the third generation: eight channels of DDR4-3200, 205 GB/s
)
_PCIE = 25e9  # PCIe 4 x16 carries 31.5 GB/s; pinned copies reach 24 to 26
_INT8_OPS_PER_CORE = 0.5e12  # VNNI, two units of 512 bits at 2.6 GHz give 0.67e12; Zen 4 is alike
_DISK = 3e9  # an NVMe disk of PCIe 3, or a full one of PCIe 4
_DISK_FREE = 2 * 10**12
_CAPABILITY = (8, 6)  # the oldest consumer card that the GPU kernels take
_DRIVER_SHARE = 64  # the driver keeps 1/64: cards of 8, 24 and 80 GiB offer 7.8, 23.6 and 79.1


def on_paper(
    *,
    vram: int | None,
    ram: int,
    ram_bandwidth: float | None = None,
    pcie: float | None = None,
    vram_bandwidth: float | None = None,
) -> Hardware:
    """A machine that is not here. `vram` is the card's size (None or 0: no GPU) and `ram` what is
    free for us, in bytes; the others in bytes/second. What is not given is typical, and in
    `assumed`.
    """
    ram_speed, cores = _row(_HOSTS, ram)
    given = {
        "ram_bandwidth": ram_bandwidth,
        "gpu.pcie": pcie,
        "gpu.bandwidth": vram_bandwidth,
    }
    assumed = {name for name, value in given.items() if value is None}
    assumed |= {"int8_ops", "threads", "cores", "numa_nodes", "isa", "disk_bandwidth", "disk_free"}
    if vram:
        assumed |= {"gpu.free", "gpu.capability"}
    return Hardware(
        gpus=(_card(vram, vram_bandwidth, pcie),) if vram else (),
        ram_total=ram,
        ram_available=ram,
        ram_bandwidth=ram_bandwidth or ram_speed,
        int8_ops=_INT8_OPS_PER_CORE * cores,
        threads=int(cores),
        cores=int(cores),
        numa_nodes=1,
        isa="avx512_vnni",
        disk_bandwidth=_DISK,
        disk_free=_DISK_FREE,
        assumed=frozenset(name for name in assumed if vram or not name.startswith("gpu.")),
    )


def _card(vram: int, bandwidth: float | None, pcie: float | None) -> Gpu:
    (typical,) = _row(_CARDS, vram)
    return Gpu(
        name=f"a GPU of {vram / _GIB:g} GiB",
        total=vram,
        free=vram - vram // _DRIVER_SHARE,
        capability=_CAPABILITY,
        driver="",
        bandwidth=bandwidth or typical,
        pcie=pcie or _PCIE,
    )


def _row(table: Sequence[tuple[float, ...]], nbytes: int) -> tuple[float, ...]:
    """The values of the last row whose size (GiB) is not above `nbytes`."""
    return [row for row in table if row[0] * _GIB <= nbytes][-1][1:]


def measured(
    folder: Path, probes: Probes, report: Report = lambda stage, done, total: None
) -> Hardware:
    """This machine; `folder` is where models lie, or will. Takes seconds.

    `report` is called with (what is measured, how many such things are done, of how many). What
    cannot be measured is typical, and in `assumed`.
    """
    report("Measuring the disk", 0, 4)
    disk_speed = disk.read_bandwidth(folder)
    report("Measuring memory reads", 1, 4)
    ram_speed = probes.ram_bandwidth()
    report("Measuring int8 arithmetic", 2, 4)
    int8_ops = probes.int8_ops()
    report("Measuring the GPUs", 3, 4)
    cards = gpus.measure(gpus.look())
    report("Measured this machine", 4, 4)
    assumed = {
        "disk_bandwidth": disk_speed is None,
        "gpu.bandwidth": not all(gpu.bandwidth for gpu in cards),
        "gpu.pcie": not all(gpu.pcie for gpu in cards),
    }
    return Hardware(
        gpus=tuple(_with_speeds(gpu, gpu) for gpu in cards),
        ram_total=memory.total_bytes(),
        ram_available=memory.available_bytes(),
        ram_bandwidth=ram_speed,
        int8_ops=int8_ops,
        threads=probes.threads,
        cores=probes.cores,
        numa_nodes=numa_nodes(),
        isa=probes.isa,
        disk_bandwidth=disk_speed or _DISK,
        disk_free=disk.free_bytes(folder),
        assumed=frozenset(name for name, holds in assumed.items() if holds),
    )


def _with_speeds(gpu: Gpu, measured: Gpu) -> Gpu:
    """`gpu` with the speeds of `measured`, or with typical ones where it has none."""
    (typical,) = _row(_CARDS, gpu.total)
    return replace(gpu, bandwidth=measured.bandwidth or typical, pcie=measured.pcie or _PCIE)


def refreshed(hardware: Hardware, seen: tuple[Gpu, ...], folder: Path) -> Hardware:
    """A machine measured before, with what is free now; `seen`: its GPUs, just looked at."""
    pairs = zip(seen, hardware.gpus, strict=True)
    return replace(
        hardware,
        gpus=tuple(_with_speeds(now, before) for now, before in pairs),
        ram_total=memory.total_bytes(),
        ram_available=memory.available_bytes(),
        disk_free=disk.free_bytes(folder),
    )


def numa_nodes(nodes: Path = Path("/sys/devices/system/node")) -> int:
    """How many nodes hold memory; 1 where the system does not say."""
    try:
        return max(1, count_in_list((nodes / "has_memory").read_text()))
    except OSError:
        return 1


def count_in_list(text: str) -> int:
    """How many numbers the kernel means by `0-3,8`: 5."""
    ends = [part.split("-") for part in text.strip().split(",") if part]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def to_json(hardware: Hardware) -> dict[str, Any]:
    """All facts, as `from_json` takes them."""
    return {**asdict(hardware), "assumed": sorted(hardware.assumed)}


def from_json(facts: Any) -> Hardware:
    """What `to_json` gave. Raises ValueError for anything else."""
    try:
        cards = tuple(_gpu_from_json(card) for card in facts["gpus"])
        machine = {**facts, "gpus": cards, "assumed": frozenset(facts["assumed"])}
        return Hardware(**_typed(Hardware, machine))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a machine: {error}") from error


def _gpu_from_json(facts: Any) -> Gpu:
    major, minor = facts["capability"]
    return Gpu(**_typed(Gpu, {**facts, "capability": (int(major), int(minor))}))


def _typed(kind: type[Hardware] | type[Gpu], facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, once their types are those that the fields name."""
    plain = {"int": (int,), "float": (int, float), "str": (str,)}
    for name, annotation in kind.__annotations__.items():
        if annotation in plain and type(facts[name]) not in plain[annotation]:
            raise TypeError(name)
    return facts
