"""What a model may use of a machine with several GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localr1.engine import device
from localr1.engine.device import CUDA, room
from offload.hardware import Gpu, on_paper
from offload.planner import usable_gpu

GIB = 1 << 30


def test_the_plan_is_for_the_gpu_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second card has the most room, and as little as the first once 8 GiB are allowed."""
    slow = Gpu("a slow one", 12 * GIB, 11 * GIB, (8, 6), "580.1", 3e11, 1e10)
    quick = Gpu("a quick one", 24 * GIB, 23 * GIB, (8, 9), "580.1", 1e12, 2e10)
    found = replace(on_paper(vram=24 * GIB, ram=64 * GIB), gpus=(slow, quick))
    monkeypatch.setattr(device, "_problem", lambda: "")
    monkeypatch.setattr(device, "hardware", lambda **options: found)
    machine = room(CUDA, None, 8 * GIB, None, lambda progress: None)
    assert machine.gpu == 1
    assert machine.hardware.gpus == (replace(quick, free=8 * GIB),)
    assert usable_gpu(machine.hardware) == machine.hardware.gpus[0]
