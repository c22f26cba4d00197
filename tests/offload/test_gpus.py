"""GPUs as facts: this machine's, and what is said where the driver says little."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from offload import cuda, gpus
from offload.cuda import CudaError

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def test_this_machine() -> None:
    driver, seen = gpus.driver(), gpus.look()
    if driver.problem:
        assert seen == ()
    for gpu in gpus.measure(seen):
        assert gpu.name and 0 <= gpu.free <= gpu.total
        assert gpu.capability >= (3, 0) and driver.cuda >= (11, 0)
        assert 1e10 < gpu.bandwidth < 1e14 and 1e8 < gpu.pcie < 1e12


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offload.gpus"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["driver"]["problem"] == gpus.driver().problem
    assert [gpu["name"] for gpu in facts["gpus"]] == [gpu.name for gpu in gpus.look()]


def test_a_machine_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_CUDA", "libcuda-of-nobody.so.1")
    monkeypatch.setattr(cuda, "_NVML", "libnvidia-ml-of-nobody.so.1")
    assert gpus.driver().problem == "there is no NVIDIA driver"
    assert gpus.look() == gpus.measure(()) == ()
    with cuda.Nvml() as nvml:
        assert nvml.driver() == "" and nvml.memory("0000:01:00.0") is None


class Card:
    """What libcuda and NVML would say about one GPU; such cards are not in every machine."""

    def __init__(self, board: tuple[int, int] | None, refuses: bool = False) -> None:
        self.board, self.refuses = board, refuses

    def name(self, device: int) -> str:
        return "A100 MIG 3g.40gb"

    def bus(self, device: int) -> str:
        return "0000:01:00.0"

    def total(self, device: int) -> int:
        return 40 * GIB

    def capability(self, device: int) -> tuple[int, int]:
        return 8, 0

    def driver(self) -> str:
        return "580.65.06"

    def memory(self, bus: str) -> tuple[int, int] | None:
        return self.board

    @contextmanager
    def context(self, device: int) -> Iterator[None]:
        if self.refuses:
            raise CudaError("cuDevicePrimaryCtxRetain: out of memory (2)")
        yield

    def free(self) -> int:
        return 39 * GIB


@pytest.mark.parametrize(
    ("card", "free"),
    [
        (Card((40 * GIB + 300, 30 * GIB)), 30 * GIB),
        (Card((41 * GIB, 41 * GIB)), 40 * GIB),  # never more than a process can see
        (Card((80 * GIB, 70 * GIB)), 39 * GIB),  # a part of a board: NVML tells of the whole
        (Card(None), 39 * GIB),  # no NVML, as in some containers
        (Card(None, refuses=True), 0),
    ],
)
def test_what_is_free(card: Card, free: int) -> None:
    gpu = gpus._look_at(card, card, 0)
    assert (gpu.free, gpu.total, gpu.driver) == (free, 40 * GIB, "580.65.06")


def test_a_gpu_that_refuses_stays_unmeasured() -> None:
    card = Card(None, refuses=True)
    gpu = gpus._look_at(card, card, 0)
    assert gpus._measured(card, 0, gpu) == gpu
