"""Latents in a file: token after token, exact, and noticed when they are cut short."""

from __future__ import annotations

import io
import zlib

import pytest
import torch

from localr1.models.cache_layout import CacheLayout
from localr1.models.kv_cache import KVCache

LAYOUTS = [
    CacheLayout(5, "float32"),
    CacheLayout(5, "bfloat16"),
    CacheLayout(5, "uint8", 2),
    CacheLayout(6, "int8", 3),
]


def filled(layout: CacheLayout = LAYOUTS[0]) -> KVCache:
    cache = KVCache(3, 20, layout)
    cache.rows = (100 * torch.rand(cache.rows.shape)).to(cache.rows.dtype)
    if cache.scales is not None:
        cache.scales = torch.randn(cache.scales.shape)
    cache.commit(12)
    return cache


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_round_trip_in_pieces_is_exact(layout: CacheLayout) -> None:
    cache, other, file = filled(layout), filled(layout), io.BytesIO()
    sums = [cache.save(file, 0, 7), cache.save(file, 7, 12)]
    assert len(file.getvalue()) == 12 * cache.token_nbytes
    assert zlib.crc32(file.getvalue()[: 7 * cache.token_nbytes]) == sums[0]
    file.seek(0)
    other.truncate(0)
    for length, total in zip((7, 5), sums, strict=True):
        assert other.load(file, length) == total
        other.commit(length)
    assert torch.equal(other.rows[:, :12], cache.rows[:, :12])
    if cache.scales is not None and other.scales is not None:
        assert torch.equal(other.scales[:, :12], cache.scales[:, :12])
        assert not torch.equal(other.scales, cache.scales)
    assert other.length == 12


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bytes(layout: CacheLayout) -> None:
    cache = KVCache(3, 20, layout)
    assert cache.nbytes == 20 * cache.token_nbytes == 20 * 3 * layout.nbytes


def test_a_file_that_ends_early_commits_nothing() -> None:
    cache, file = filled(), io.BytesIO()
    cache.save(file, 0, 3)
    file.seek(0)
    cache.truncate(0)
    with pytest.raises(EOFError):
        cache.load(file, 4)
    assert cache.length == 0


def test_layers_before_in_other_memory_are_a_part() -> None:
    """Two layers in float32, then three in 8 bits: one cache, whose file holds both."""
    whole, again = (KVCache(3, 20, LAYOUTS[2], before=KVCache(2, 20, LAYOUTS[0])) for _ in range(2))
    assert whole.n_layers == 5
    assert whole.layout == "2 x 5 float32, 3 x 5 uint8 + 2 scales"
    assert whole.nbytes == 20 * whole.token_nbytes == 20 * (2 * 20 + 3 * (5 + 8))
    whole.commit(4)
    for layer in range(5):
        rows, scales = whole.of(layer)
        assert whole.update(layer, torch.full((2, 5), layer)).shape == (6, 5)
        assert rows[4:6].unique().tolist() == [layer]
        assert (scales is None) == (layer < 2)
        if scales is not None:
            scales.normal_()
    whole.commit(2)
    file = io.BytesIO()
    total = whole.save(file, 4, 6)
    file.seek(0)
    assert again.load(file, 2) == total
    for layer in range(5):
        for one, other in zip(whole.of(layer), again.of(layer), strict=True):
            assert one is other is None or torch.equal(one[4:6], other[:2])


def test_layouts_are_told_apart() -> None:
    assert filled().layout == "3 x 5 float32"
    assert filled(LAYOUTS[1]).layout == "3 x 5 bfloat16"
    assert filled(LAYOUTS[2]).layout == "3 x 5 uint8 + 2 scales"
