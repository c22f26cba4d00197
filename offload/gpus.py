"""The GPUs of a machine, as facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that CUDA shows to this process."""

    name: str
    total: int  # bytes of VRAM that a process can see
    free: int  # bytes that nobody uses; a CUDA context of ours is still to come out of them
    capability: tuple[int, int]
    driver: str  # "580.65.06"; "" where the driver does not say
    bandwidth: float  # VRAM, bytes/second
    pcie: float  # pinned RAM -> VRAM, bytes/second
