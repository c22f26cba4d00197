"""What a model may use of this machine: the RAM that is free, and the GPU unless something forbids.

Not here: what the model then gets of it (offload.planner).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import NamedTuple

import torch

from localr1.errors import USAGE, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.machine import hardware
from offload import gpus
from offload.hardware import Hardware, on_paper
from offload.memory import available_bytes
from offload.planner import CAPABILITY, usable_gpu, with_room

AUTO, CPU, CUDA = DEVICES = ("auto", "cpu", "cuda")
_DOCTOR = "localr1 doctor says more; --device cpu runs without it"


class Room(NamedTuple):
    """Hardware to plan for, with one GPU at most. `gpu` is its number in CUDA's order; `problem`
    why there is none.
    """

    hardware: Hardware
    gpu: int | None = None
    problem: str = ""


def room(
    device: str,
    ram: int | None,
    vram: int | None,
    threads: int | None,
    report: Callable[[Progress], None],
) -> Room:
    """What is free of this machine, no more of it than `ram` and `vram` bytes.

    The first time with a GPU the machine is measured, which takes seconds. Raises LocalR1Error for
    an unknown device, Unsupported where "cuda" cannot be had.
    """
    if device not in DEVICES:
        raise LocalR1Error(f"{device!r} is no device", f"there are {', '.join(DEVICES)}", USAGE)
    free = available_bytes()
    ram = free if ram is None else min(ram, free)
    problem = "" if device == CPU or vram == 0 else _problem()
    if device == CUDA and problem:
        raise Unsupported(problem, _DOCTOR)
    if device == CPU or vram == 0 or problem:
        return Room(on_paper(vram=None, ram=ram), problem=problem if gpus.look() else "")
    torch.cuda.empty_cache()  # what a model before this one left would count as taken
    found = hardware(report=report, threads=threads)
    gpu = usable_gpu(found)
    assert gpu is not None
    # The plan gets this one only: with room taken from all, it might find another one roomier.
    chosen = replace(found, gpus=(gpu,))
    return Room(with_room(chosen, ram, vram), found.gpus.index(gpu))


def _problem() -> str:
    """Why no GPU can be used; "" where one can."""
    seen = gpus.look()
    if not seen:
        return f"there is no NVIDIA GPU to use: {gpus.driver().problem or 'CUDA shows none'}"
    if all(gpu.capability < CAPABILITY for gpu in seen):
        needed = ".".join(map(str, CAPABILITY))
        return f"the {seen[0].name} is too old: kernels need compute capability {needed}"
    if torch.version.cuda is None:
        return f"the {seen[0].name} is not used: the installed torch is a build for the CPU"
    if not torch.cuda.is_available():
        return f"the {seen[0].name} is not used: this torch does not suit its driver"
    if find_spec("triton") is None:
        return f"the {seen[0].name} is not used: triton, which compiles for it, is not installed"
    return ""
