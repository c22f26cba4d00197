"""Rotation, the latent's norm and the cache row against the same steps in float64."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu import rope
from localr1.gpu.cache_rows import CacheRows, unpacked
from localr1.models.config import RopeConfig
from localr1.models.rope import Rope

EPS = 1e-6
BF16 = 2**-7  # a GPU rounds (2**-8), Triton's interpreter cuts
E4M3 = 2**-4
ROPE = RopeConfig(10000.0, 32, 4.0, 64, mscale=1.0, mscale_all_dim=0.5)


def e4m3(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes by torch's own conversion, and the scale that makes the largest value 448."""
    scale = values.abs().amax(-1, keepdim=True).float() / 448
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


def filled(
    n_rows: int, rank: int, rope: int, fp8: bool, device: str
) -> tuple[CacheRows, torch.Tensor]:
    """A cache of random rows, and their values as float64 `[n_rows, rank + rope]`."""
    values = torch.randn(n_rows, rank + rope).bfloat16()
    if not fp8:
        return CacheRows(values.to(device)), values.double()
    parts = [e4m3(part) for part in values.split([rank, rope], -1)]
    codes = torch.cat([codes.view(torch.uint8) for codes, _ in parts], -1)
    scales = torch.cat([scale for _, scale in parts], -1)
    exact = torch.cat([codes.double() * scale.double() for codes, scale in parts], -1)
    return CacheRows(codes.to(device), scales.to(device)), exact


def empty(n_rows: int, width: int, fp8: bool, device: str) -> CacheRows:
    """Rows of zeros."""
    dtype = torch.uint8 if fp8 else torch.bfloat16
    rows = torch.zeros(n_rows, width, dtype=dtype, device=device)
    return CacheRows(rows, torch.zeros(n_rows, 2, device=device) if fp8 else None)


def turned(x: torch.Tensor, table: Rope, start: int) -> torch.Tensor:
    """`x` float64 [T, ..., dim] by the table's angles."""
    turns = table.turns[start : start + len(x)].to(torch.complex128)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    if x.ndim == 3:
        turns = turns[:, None]
    return torch.view_as_real(pairs * turns).flatten(-2)


@pytest.mark.parametrize(("n_tokens", "start"), [(1, 0), (1, 77), (5, 40)])
@pytest.mark.parametrize(("heads", "nope", "rank"), [(8, 32, 128), (11, 24, 96)])
@pytest.mark.parametrize("fp8", [False, True])
def test_rotate(
    device: str, n_tokens: int, start: int, heads: int, nope: int, rank: int, fp8: bool
) -> None:
    dim, table = ROPE.dim, Rope(ROPE, 128)
    q = torch.randn(n_tokens, heads, nope + dim)
    joined = torch.randn(n_tokens, rank + dim + 16)  # beside another projection's columns
    kv, norm = joined[:, : rank + dim], 1 + torch.randn(rank) / 8
    cache = empty(128, rank + dim, fp8, device)
    q_nope = torch.empty(n_tokens, heads, nope, device=device)
    q_rope = torch.empty(n_tokens, heads, dim, dtype=torch.bfloat16, device=device)
    rope.rotate(
        q.flatten(1).to(device), joined.to(device)[:, : rank + dim], norm.to(device), EPS,
        torch.from_numpy(table.pairs).to(device),
        torch.tensor([start], dtype=torch.int32, device=device), cache, q_nope, q_rope,
    )  # fmt: skip
    assert torch.equal(q_nope.cpu(), q[..., :nope])
    expected = turned(q[..., nope:].double(), table, start)
    close(q_rope, expected, BF16)
    latent, key = kv.double().split([rank, dim], -1)
    latent = latent * (latent.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm
    written = slice(start, start + n_tokens)
    rows = unpacked(cache, 0, 128, rank)
    close(rows[written, :rank], latent, E4M3 if fp8 else BF16)
    close(rows[written, rank:], turned(key, table, start), E4M3 if fp8 else BF16)
    untouched = torch.ones(128, dtype=torch.bool)
    untouched[written] = False
    assert not cache.rows[untouched.to(device)].any()


def close(found: torch.Tensor, expected: torch.Tensor, rounding: float) -> None:
    """Each value within its own rounding, the smallest within that of 2**-9 of the largest."""
    found = found.cpu().double()
    bound = rounding * 1.01 * expected.abs().clamp_min(2**-9 * float(expected.abs().max()))
    assert ((found - expected).abs() <= bound).all()


def test_rows_in_fp8_are_torch_s(device: str) -> None:
    """Codes bit for bit, zeros and the smallest values too; unpacked they are the codes' values."""
    rank, dim = 192, 32
    values = torch.randn(3, rank) * torch.logspace(-6, 1, rank)
    values[1, :100] = 0
    cache = empty(4, rank + dim, True, device)
    q = torch.zeros(3, dim + 16)
    q_nope, q_rope = (torch.empty(3, 1, n, device=device) for n in (16, dim))
    kv = torch.cat([values, torch.zeros(3, dim)], -1).to(device)
    table = torch.from_numpy(Rope(ROPE, 8).pairs).to(device)
    one, first = torch.ones(rank, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    rope.rotate(q.to(device), kv, one, EPS, table, first, cache, q_nope, q_rope)
    scales, rows = cache.scales, cache.rows.cpu()
    assert scales is not None
    normed = values * (values.double().square().mean(-1, keepdim=True) + EPS).rsqrt().float()
    expected = (normed / scales[:3, :1].cpu()).to(torch.float8_e4m3fn)
    # The two norms may differ by a last bit, which seldom moves a code to its neighbour.
    near = rows[:3, :rank].view(torch.float8_e4m3fn).float() - expected.float()
    assert (near != 0).float().mean() < 0.01
    assert (near.abs() <= expected.float().abs() / 8 + 2**-9).all()
    assert not (rows[:3, rank:] & 0x7F).any() and (scales[:3, 1] == 1).all()
    found = unpacked(cache, 0, 3, rank).cpu().float()
    codes = rows[:3].view(torch.float8_e4m3fn).float()
    exact = torch.cat([codes[:, :rank] * scales[:3, :1].cpu(), codes[:, rank:]], -1)
    close(found, exact.double(), BF16)
