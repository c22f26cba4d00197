"""Bits are moved the same with GFNI and without it."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from cpu_experts import cpu
from cpu_experts.bits import move_bits, pick_bits
from cpu_experts.vectors import load, store

CASES = [
    ((0, 0, 4, 4), 15),
    ((4, 4, 6, 6), 3),
    ((-4, -4, -3, -3), 16),
    ((0, 0, 1, 1), 16),
    ((-4, -4, -2, -2), 0x30),
    ((4, 4, 5, 5), 4),
    ((-2, -2, 3, 3), 12),
]


needs_512_bits = pytest.mark.skipif(
    not cpu.supports("avx512_vnni"), reason="this CPU has no 512-bit vectors"
)


def moved(operation, values: np.ndarray) -> np.ndarray:
    """What an operation on 512 bits makes of 64 bytes."""

    @njit
    def run(source, target):
        store(operation(load(source)), target)

    got = np.zeros(64, dtype=np.uint8)
    run(values.ctypes.data, got.ctypes.data)
    return got


@pytest.fixture(params=[frozenset(), frozenset({"gfni"})], ids=["as it is", "without gfni"])
def any_cpu(request, monkeypatch) -> None:
    left = cpu.features() - request.param
    monkeypatch.setattr(cpu, "features", lambda: left)


@needs_512_bits
@pytest.mark.parametrize(("counts", "mask"), CASES)
def test_bytes_are_shifted_masked_and_flipped(counts, mask, any_cpu) -> None:
    values = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)
    by = np.repeat(counts, 16)
    wide = values.astype(np.int64)
    wanted = np.where(by < 0, wide << np.maximum(-by, 0), wide >> np.maximum(by, 0)) & mask
    np.testing.assert_array_equal(moved(move_bits(*counts, mask=mask), values), wanted)
    flipped = moved(move_bits(*counts, mask=mask, flips=0x89), values)
    np.testing.assert_array_equal(flipped, wanted ^ 0x89)


@needs_512_bits
def test_any_bit_takes_any_place_of_its_byte(any_cpu) -> None:
    lanes = [
        [4, 5, 6, 7, 0, 1, 2, 3],
        [7, None, 0, 0, None, 3, 2, 1],
        [None] * 4 + [4, 5, 6, 7],
        [4, 5, 6, 7] + [None] * 4,
    ]
    values = np.random.default_rng(1).integers(0, 256, 64, dtype=np.uint8)
    bits = np.unpackbits(values.reshape(4, 16, 1), axis=2, bitorder="little")
    wanted = np.zeros_like(bits)
    for lane, sources in enumerate(lanes):
        for i, source in enumerate(sources):
            wanted[lane, :, i] = 0 if source is None else bits[lane, :, source]
    wanted = np.packbits(wanted, axis=2, bitorder="little").reshape(-1)
    np.testing.assert_array_equal(moved(pick_bits(*lanes), values), wanted)
