"""Activations as integers: by themselves, by the norm that makes them, what they stand for."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu.activations import Activations, Integers, empty
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.norm import rms_norm
from localr1.gpu.rope import rotate
from localr1.gpu.splits import combine


def values_of(made: Integers, n_rows: int, cols: int) -> torch.Tensor:
    """float64 `[rows, cols]`; checks the sums on the way, and what fills up the last block."""
    n_blocks = n_rows * made.row_blocks
    words = made.words.cpu().view(-1, 16, 16, 4).transpose(1, 2).reshape(-1, 64)[:n_blocks]
    integers = words.contiguous().view(torch.int16).long()  # [blocks, 128]
    assert torch.equal(integers.view(-1, 8, 16).sum(-1), made.sums.cpu().view(-1, 8)[:n_blocks])
    values = integers.double() * made.units.cpu()[:n_blocks, None].double()
    values = values.view(n_rows, -1)
    assert not values[:, cols:].any()
    return values[:, :cols]


def check(made: Integers, x: torch.Tensor) -> None:
    """Each within half a step of `x` [rows, cols], and some bits of float32."""
    n_rows, cols = x.shape
    found = values_of(made, n_rows, cols)
    step = made.units.cpu()[: n_rows * made.row_blocks].view(n_rows, -1)
    step = step.repeat_interleave(128, 1)[:, :cols].double()
    assert ((found - x.cpu().double()).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("cols", [128, 7168, 96, 1000, 16])
def test_rows_of_any_width(device: str, cols: int) -> None:
    x = torch.randn(5, cols) * torch.logspace(-6, 6, 5)[:, None]
    x[3, ::7] *= 1e4  # outliers
    x[2] = 0
    check(Activations(x.to(device)).integers, x)


def test_heads_of_tokens(device: str) -> None:
    x = torch.randn(3, 4, 200).bfloat16()[..., :160]
    made = Activations(x.to(device)).integers
    assert made.between == 4
    check(made, x.flatten(0, 1))


def test_one_input_of_many_matrices_is_made_once(device: str) -> None:
    x = torch.randn(2, 256)
    made = Activations(x.to(device).unsqueeze(1).expand(-1, 6, -1)).integers
    assert made.between == 1
    check(made, x)


@pytest.mark.parametrize("cols", [64, 576, 2048])
def test_norm_makes_them(device: str, cols: int) -> None:
    x, weight = torch.randn(2, cols, device=device), torch.rand(cols, device=device)
    made = empty(2, cols, x.device)
    check(made, rms_norm(x, weight, 1e-6, integers=made))


def test_the_joining_of_splits_makes_them(device: str) -> None:
    """Two tokens, three heads, latents of 256: a row for each head."""
    sums, peaks = torch.randn(6, 4, 256, device=device), torch.randn(6, 4, device=device)
    position = torch.full((1,), 200, dtype=torch.int32, device=device)
    out, made = torch.empty(2, 3, 256, device=device), empty(2, 256, sums.device, 3)
    combine(sums, peaks, position, 32, out, made)
    check(made, out.flatten(0, 1))


def test_queries_are_made_them(device: str) -> None:
    """Plain parts of 128 beside rotated ones of 16, of more heads than a program takes."""
    heads, rank, rope = 11, 32, 16
    q, kv = torch.randn(2, heads * (128 + rope)), torch.randn(2, rank + rope)
    turns, norm = torch.randn(8, rope // 2, 2), torch.rand(rank)
    q, kv, turns, norm = (part.to(device) for part in (q, kv, turns, norm))
    position = torch.full((1,), 3, dtype=torch.int32, device=device)
    rows = CacheRows(torch.zeros(8, rank + rope, dtype=torch.bfloat16, device=device))
    plain = torch.empty(2, heads, 128, device=device)
    rotated = torch.empty(2, heads, rope, dtype=torch.bfloat16, device=device)
    made = empty(2, 128, q.device, heads)
    rotate(q, kv, norm, 1e-6, turns, position, rows, plain, rotated, made)
    assert torch.equal(plain, q.view(2, heads, -1)[..., :128])
    check(made, plain.flatten(0, 1))
