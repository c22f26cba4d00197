"""The GPUs of a machine, as facts: what they are, what is free, how fast they are.

`python -m offload.gpus` prints them, measured, as JSON. Not here: the driver's calls
(offload.cuda), and what a GPU is used for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from offload.cuda import Cuda, CudaError, NoDriver, Nvml

_COPIED = 512 << 20  # bytes within VRAM: several times the largest cache
_PINNED = 128 << 20  # bytes of RAM, which are slow to get
_MIG = 1.1  # a board with this many times the VRAM of what CUDA shows is cut into parts


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that CUDA shows to this process."""

    name: str
    total: int  # bytes of VRAM that a process can see
    free: int  # bytes that nobody uses; a CUDA context of ours is still to come out of them
    capability: tuple[int, int]
    driver: str  # "580.65.06"; "" where the driver does not say
    bandwidth: float  # VRAM, bytes/second; 0: not measured
    pcie: float  # pinned RAM -> VRAM, bytes/second; 0: not measured


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver: whether it answers, and the newest CUDA that it runs."""

    problem: str  # "" when it answers
    version: str = ""
    cuda: tuple[int, int] = (0, 0)


def driver() -> Driver:
    """The NVIDIA driver of this machine."""
    try:
        cuda = Cuda()
    except NoDriver as problem:
        return Driver(str(problem))
    with Nvml() as nvml:
        return Driver("", nvml.driver(), cuda.version())


def look() -> tuple[Gpu, ...]:
    """The GPUs without their speeds; no context is made unless NVML does not answer."""
    try:
        cuda = Cuda()
    except NoDriver:
        return ()
    with Nvml() as nvml:
        return tuple(_look_at(cuda, nvml, device) for device in range(cuda.count()))


def _look_at(cuda: Cuda, nvml: Nvml, device: int) -> Gpu:
    total = cuda.total(device)
    board = nvml.memory(cuda.bus(device))
    if board is None or board[0] > total * _MIG:
        free = _free_by_context(cuda, device)
    else:
        free = min(total, board[1])
    return Gpu(
        name=cuda.name(device),
        total=total,
        free=free,
        capability=cuda.capability(device),
        driver=nvml.driver(),
        bandwidth=0.0,
        pcie=0.0,
    )


def _free_by_context(cuda: Cuda, device: int) -> int:
    try:
        with cuda.context(device):
            return cuda.free()
    except CudaError:  # not even a context fits, or somebody has the GPU for himself
        return 0


def measure(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """What `look` gave, with speeds; about half a second each. 0 stays where a GPU refuses."""
    if not gpus:
        return ()
    cuda = Cuda()
    return tuple(_measured(cuda, device, gpu) for device, gpu in enumerate(gpus))


def _measured(cuda: Cuda, device: int, gpu: Gpu) -> Gpu:
    try:
        with cuda.context(device):
            room = cuda.free() // 4
            bandwidth = cuda.vram_bandwidth(min(_COPIED, room))
            pcie = cuda.pcie_bandwidth(min(_PINNED, room))
    except CudaError:
        return gpu
    return replace(gpu, bandwidth=bandwidth, pcie=pcie)


if __name__ == "__main__":
    print(json.dumps({"driver": asdict(driver()), "gpus": [asdict(g) for g in measure(look())]}))
