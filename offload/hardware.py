"""A machine as plain facts: bytes, and bytes a second; measured, or typical ones of a machine that
is not here.

What the planner decides from. Not here: how a GPU (offload.gpus) or a disk (offload.disk) is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offload.gpus import Gpu

__all__ = ["Gpu", "Hardware", "on_paper"]

_GIB = 1 << 30


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
    isa: str  # the CPU kernels' tier: "avx512_vnni" or "portable"
    disk_bandwidth: float  # reads of the disk that holds the models
    disk_free: int
    assumed: frozenset[str]  # fields that are typical values, not measured ones; "gpu.pcie" too


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
