"""move_bits gives the same with GFNI and without it."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from cpu_experts import cpu
from cpu_experts.bits import move_bits
from cpu_experts.vectors import load, store

CASES = [
    ((0, 0, 4, 4), 15),
    ((4, 4, 6, 6), 3),
    ((-4, -4, -3, -3), 16),
    ((0, 0, 1, 1), 16),
    ((-4, -4, -2, -2), 0x30),
    ((4, 4, 5, 5), 4),
]


@pytest.mark.skipif(not cpu.supports("avx512_vnni"), reason="this CPU has no 512-bit vectors")
@pytest.mark.parametrize("without", [frozenset(), frozenset({"gfni"})])
@pytest.mark.parametrize(("counts", "mask"), CASES)
def test_bytes_are_shifted_and_masked(counts, mask, without, monkeypatch) -> None:
    left = cpu.features() - without
    monkeypatch.setattr(cpu, "features", lambda: left)
    move = move_bits(*counts, mask=mask)

    @njit
    def run(source, target):
        store(move(load(source)), target)

    values = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)
    got = np.zeros(64, dtype=np.uint8)
    run(values.ctypes.data, got.ctypes.data)
    by = np.repeat(counts, 16)
    wide = values.astype(np.int64)
    wanted = np.where(by < 0, wide << np.maximum(-by, 0), wide >> np.maximum(by, 0)) & mask
    np.testing.assert_array_equal(got, wanted)
