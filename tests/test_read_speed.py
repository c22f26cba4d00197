"""The read limit: the median of rounds, unless fewer threads read faster."""

from __future__ import annotations

import numpy as np
import pytest

from localr1 import read_speed
from localr1.read_speed import ReadSpeed


@pytest.mark.parametrize(("half", "expected"), [(100.0, 200.0), (250.0, 250.0)])
def test_the_median_of_rounds_or_what_fewer_threads_reached(monkeypatch, half, expected) -> None:
    seconds = iter([1 / 50, 1 / 200])
    monkeypatch.setattr(read_speed, "last_cache_bytes", lambda: 1)
    monkeypatch.setattr(read_speed, "ways_by_threads", lambda memory: {1: (1, 512), 2: (4, 2048)})
    monkeypatch.setattr(read_speed, "read_limit", lambda memory, ways: {1: half, 2: 300.0})
    monkeypatch.setattr(
        read_speed, "read_seconds", lambda memory, way: memory.nbytes * next(seconds)
    )
    speed = ReadSpeed(np.zeros(1000, np.uint8))
    speed.again()
    speed.again()
    assert speed.bandwidth == pytest.approx(expected)
    assert speed.working_set == 1000


def test_memory_is_read_in_rounds() -> None:
    speed = ReadSpeed(np.ones(1 << 22, np.uint8))
    before = speed.bandwidth
    speed.again()
    assert before > 0 and speed.bandwidth > 0
