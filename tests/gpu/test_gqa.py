"""Grouped-query attention on the GPU against its definition in float64, and the steps before it."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu import gqa, gqa_prefill, gqa_rope
from localr1.gpu.cache_rows import CacheRows
from localr1.gpu.sizes import KnownGroupedSizes, Rotated
from localr1.models.rope import Rope
from localr1.models.rope_config import RopeConfig
from tests.gpu.test_compile import check
from tests.gpu.test_mla import TOLERANCE, error
from tests.gpu.test_rope import BF16, close

EPS = 1e-5
SIZES = {  # heads, key heads, head_dim
    "qwen2 7B": (28, 4, 128),
    "smollm2": (9, 3, 64),
    "no groups": (3, 3, 80),
    "odd": (5, 1, 20),
    "wide": (4, 2, 256),
}


@pytest.fixture
def arch(device: str) -> int:
    """In the interpreter as for a card with little shared memory."""
    from localr1.gpu.launch import architecture

    return architecture() if device == "cuda" else 86


def reference(
    q: torch.Tensor, rows: torch.Tensor, start: int, kv_heads: int, scale: float
) -> torch.Tensor:
    """q [T, heads, d] over rows [S, 2 * key heads * d] up to its own -> [T, heads, d], float64."""
    n_tokens, heads, dim = q.shape
    keys, values = rows.double().view(len(rows), 2, kv_heads, dim).unbind(1)
    group = heads // kv_heads
    keys, values = (part.repeat_interleave(group, 1) for part in (keys, values))
    scores = torch.einsum("thd,shd->ths", q.double(), keys) * scale
    future = torch.arange(len(rows)) > start + torch.arange(n_tokens)[:, None]
    weights = scores.masked_fill(future[:, None], float("-inf")).softmax(-1)
    return torch.einsum("ths,shd->thd", weights, values)


def filled(
    n_rows: int, kv_heads: int, dim: int, int8: bool, device: str
) -> tuple[CacheRows, torch.Tensor]:
    """A cache of random rows, and their values as float64; those behind the last token's would be
    noticed.
    """
    values = torch.randn(n_rows, 2 * kv_heads * dim).bfloat16()
    if not int8:
        return CacheRows(values.to(device)), values.double()
    codes, scales = quantized(values, 2 * kv_heads)
    exact = codes.double() * scales.double()[..., None]
    return CacheRows(codes.flatten(1).to(device), scales.to(device)), exact.flatten(1)


def quantized(values: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [n_rows, parts, ...] and the scales float32 [n_rows, parts] that make each part's
    largest value 127.
    """
    parted = values.float().unflatten(1, (parts, -1))
    scales = parted.abs().amax(-1) / 127
    return (parted / scales[..., None]).round().to(torch.int8), scales


@pytest.mark.parametrize(
    ("size", "n_tokens", "start", "splits"),
    [
        ("qwen2 7B", 1, 0, 4),  # one key, the other shares empty
        ("qwen2 7B", 1, 255, 4),  # shares of 64 keys, all full
        ("qwen2 7B", 1, 256, 4),  # one key more: shares of 128, the last empty
        ("qwen2 7B", 3, 191, 5),  # rows of two tiles; the last two tokens begin another share
        ("smollm2", 1, 700, 64),
        ("smollm2", 8, 30, 3),
        ("no groups", 2, 63, 2),
        ("odd", 5, 33, 1),
        ("wide", 1, 95, 3),
    ],
)
@pytest.mark.parametrize("int8", [False, True])
def test_decode(device: str, size: str, n_tokens: int, start: int, splits: int, int8: bool) -> None:
    heads, kv_heads, dim = SIZES[size]
    cache, rows = filled(start + n_tokens + 9, kv_heads, dim, int8, device)
    q = torch.randn(n_tokens, heads, dim).bfloat16()
    position = torch.tensor([start], dtype=torch.int32, device=device)
    found = gqa.attend(q.to(device), cache, position, 0.1, splits)
    assert error(found, reference(q, rows, start, kv_heads, 0.1)) < TOLERANCE


@pytest.mark.parametrize(
    ("size", "n_tokens", "start"),
    [("qwen2 7B", 40, 0), ("qwen2 7B", 10, 90), ("smollm2", 65, 30), ("odd", 60, 7),
     ("no groups", 140, 5), ("wide", 33, 40)],
)  # fmt: skip
@pytest.mark.parametrize("int8", [False, True])
def test_prompts(device: str, arch: int, size: str, n_tokens: int, start: int, int8: bool) -> None:
    heads, kv_heads, dim = SIZES[size]
    cache, rows = filled(start + n_tokens + 70, kv_heads, dim, int8, device)
    q = torch.randn(n_tokens, heads, dim).bfloat16()
    found = gqa_prefill.attend(q.to(device), cache, start, 0.1, arch)
    assert error(found, reference(q, rows, start, kv_heads, 0.1)) < TOLERANCE


def turned(x: torch.Tensor, table: Rope, start: int) -> torch.Tensor:
    """`x` float64 [T, heads, d] by the table's angles."""
    turns = table.turns[start : start + len(x)].to(torch.complex128)[:, None]
    if table.interleaved:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)
    both = torch.complex(*x.chunk(2, -1)) * turns
    return torch.cat([both.real, both.imag], -1)


@pytest.mark.parametrize("size", ["smollm2", "no groups", "odd"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("n_tokens", "start", "biases", "norms"),
    [(1, 0, False, False), (1, 77, True, False), (5, 40, False, True), (3, 9, True, True)],
)
@pytest.mark.parametrize("int8", [False, True])
def test_rotate(
    device: str, size: str, interleaved: bool, n_tokens: int, start: int, biases: bool, norms: bool,
    int8: bool,
) -> None:  # fmt: skip
    heads, kv_heads, dim = SIZES[size]
    table = Rope(RopeConfig(10000.0, dim, attention_factor=1.2, interleaved=interleaved), 128)
    width, length = (heads + 2 * kv_heads) * dim, 2 * kv_heads * dim
    qkv = torch.randn(n_tokens, width)
    bias = torch.randn(width) if biases else None
    norm = 1 + torch.randn(2, dim) / 8 if norms else None
    kind = torch.int8 if int8 else torch.bfloat16
    rows = torch.zeros(128, length, dtype=kind, device=device)
    scales = torch.zeros(128, 2 * kv_heads, device=device) if int8 else None
    q = torch.empty(n_tokens, heads, dim, dtype=torch.bfloat16, device=device)
    gqa_rope.rotate(
        qkv.to(device), None if bias is None else bias.to(device),
        None if norm is None else norm.to(device), EPS, torch.from_numpy(table.pairs).to(device),
        interleaved, torch.tensor([start], dtype=torch.int32, device=device),
        CacheRows(rows, scales), q,
    )  # fmt: skip
    exact = qkv.double() if bias is None else qkv.double() + bias
    parts = exact.unflatten(-1, (-1, dim)).split([heads, kv_heads, kv_heads], 1)
    queries, keys, values = parts
    if norm is not None:
        queries, keys = (
            x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight
            for x, weight in zip((queries, keys), norm, strict=True)
        )
    written = slice(start, start + n_tokens)
    close(q, turned(queries, table, start), BF16)
    both = torch.cat([turned(keys, table, start), values], 1)
    if scales is None:
        close(rows[written], both.flatten(1), BF16)
    else:
        same_int8(rows[written].cpu(), scales[written].cpu(), both)
    untouched = torch.ones(128, dtype=torch.bool)
    untouched[written] = False
    assert not rows[untouched.to(device)].any()


def same_int8(codes: torch.Tensor, scales: torch.Tensor, exact: torch.Tensor) -> None:
    """`exact` float64 [T, parts, d]: each within half a step, and the largest of a part exact."""
    steps = exact.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(scales.double()[..., None], steps, rtol=1e-5, atol=0)
    codes = codes.unflatten(1, exact.shape[1:])
    assert codes.abs().amax(-1).eq(127).all()
    assert ((codes * steps - exact).abs() <= 0.501 * steps).all()


def test_a_part_of_zeros_stays_zeros(device: str) -> None:
    cache = CacheRows(
        torch.ones(1, 32, dtype=torch.int8, device=device), torch.zeros(1, 2, device=device)
    )
    qkv, q = torch.zeros(1, 48, device=device), torch.empty(1, 1, 16, device=device).bfloat16()
    table = Rope(RopeConfig(10000.0, 16), 1)
    first = torch.zeros(1, dtype=torch.int32, device=device)
    turns = torch.from_numpy(table.pairs).to(device)
    gqa_rope.rotate(qkv, None, None, EPS, turns, False, first, cache, q)
    assert not cache.rows.any() and cache.scales is not None and cache.scales.isfinite().all()


def test_wide_heads_fit_the_shared_memory() -> None:
    """The widest that are told of; the 7B model's are compiled with the other kernels."""
    heads, kv_heads, dim = SIZES["wide"]
    sizes = KnownGroupedSizes(
        "qwen3", n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, rope=Rotated(interleaved=True)
    )
    for module in (gqa, gqa_prefill, gqa_rope):
        check(module.configurations(86, sizes), 86)


def test_every_multiprocessor_gets_two_shares() -> None:
    assert gqa.splits_for(7, 4, 132) == 64
    assert gqa.splits_for(8 * 7, 4, 132) == 33
    assert gqa.splits_for(1, 32, 132) == 8
    assert gqa.splits_for(1, 32, 8) == 1
