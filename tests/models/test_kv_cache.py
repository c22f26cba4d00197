"""Latents in a file: token after token, exact, and noticed when they are cut short."""

from __future__ import annotations

import io
import zlib

import pytest
import torch

from localr1.models.kv_cache import KVCache


def filled(dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(3, 20, 5)
    cache.rows = torch.randn(3, 20, 5).to(dtype)
    cache.commit(12)
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_round_trip_in_pieces_is_exact(dtype: torch.dtype) -> None:
    cache, other, file = filled(dtype), filled(dtype), io.BytesIO()
    sums = [cache.save(file, 0, 7), cache.save(file, 7, 12)]
    assert len(file.getvalue()) == 12 * cache.token_nbytes
    assert zlib.crc32(file.getvalue()[: 7 * cache.token_nbytes]) == sums[0]
    file.seek(0)
    other.truncate(0)
    for length, total in zip((7, 5), sums, strict=True):
        assert other.load(file, length) == total
        other.commit(length)
    assert torch.equal(other.rows[:, :12], cache.rows[:, :12])
    assert other.length == 12


def test_a_file_that_ends_early_commits_nothing() -> None:
    cache, file = filled(), io.BytesIO()
    cache.save(file, 0, 3)
    file.seek(0)
    cache.truncate(0)
    with pytest.raises(EOFError):
        cache.load(file, 4)
    assert cache.length == 0


def test_layouts() -> None:
    assert filled().layout == "3 x 5 float32"
    assert filled(torch.bfloat16).layout == "3 x 5 bfloat16"
