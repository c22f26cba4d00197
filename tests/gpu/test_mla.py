"""Attention on the GPU against its definition in float64, absorbed and expanded."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu import mla, mla_prefill
from localr1.gpu.launch import architecture
from localr1.gpu.splits import MAX_SPLITS
from tests.gpu.test_rope import BF16, filled

TOLERANCE = BF16  # operands are exact, but the softmax's weights are rounded

SIZES = {  # heads, rank, rope
    "tiny-r1": (8, 128, 32),
    "wide": (17, 512, 64),
    "odd": (3, 80, 24),
}


@pytest.fixture
def arch(device: str) -> int:
    """In the interpreter as for a card with little shared memory."""
    return architecture() if device == "cuda" else 86


def reference(queries: torch.Tensor, rows: torch.Tensor, start: int, scale: float) -> torch.Tensor:
    """[T, heads, width] over [S, width] -> weights [T, heads, S], float64."""
    scores = queries.double() @ rows.double().T * scale
    position = start + torch.arange(len(queries))
    future = torch.arange(len(rows)) > position[:, None]
    return scores.masked_fill(future[:, None], float("-inf")).softmax(-1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = found.cpu().double() - expected
    return float(difference.norm() / expected.norm())


@pytest.mark.parametrize(
    ("size", "n_tokens", "start", "splits"),
    [
        ("tiny-r1", 1, 0, 4),
        ("tiny-r1", 2, 150, 5),
        ("tiny-r1", 8, 93, 40),
        ("wide", 1, 70, 2),
        ("wide", 3, 64, 1),
        ("odd", 5, 33, 7),
    ],
)
@pytest.mark.parametrize("fp8", [False, True])
def test_decode(
    device: str, arch: int, size: str, n_tokens: int, start: int, splits: int, fp8: bool
) -> None:
    heads, rank, rope = SIZES[size]
    cache, rows = filled(start + n_tokens + 9, rank, rope, fp8, device)
    q_latent = torch.randn(n_tokens, heads, rank).bfloat16()
    q_rope = torch.randn(n_tokens, heads, rope).bfloat16()
    position = torch.tensor([start], dtype=torch.int32, device=device)
    found = mla.attend(q_latent.to(device), q_rope.to(device), cache, position, 0.07, arch, splits)
    rows = rows[: start + n_tokens]
    weights = reference(torch.cat([q_latent, q_rope], -1), rows, start, 0.07)
    assert error(found, weights @ rows[:, :rank]) < TOLERANCE


@pytest.mark.parametrize(("n_tokens", "start"), [(70, 0), (5, 200), (130, 77)])
@pytest.mark.parametrize("fp8", [False, True])
def test_prefill_in_pieces(device: str, arch: int, n_tokens: int, start: int, fp8: bool) -> None:
    heads, rank, nope, rope, v = 3, 96, 40, 16, 24
    end = start + n_tokens
    cache, rows = filled(end + 3, rank, rope, fp8, device)
    k_b, v_b = torch.randn(heads, nope, rank) / rank**0.5, torch.randn(heads, v, rank) / rank**0.5
    q_nope = torch.randn(n_tokens, heads, nope).bfloat16()
    q_rope = torch.randn(n_tokens, heads, rope).bfloat16()
    seen: list[int] = []

    def expand(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values side by side in one buffer, as the product with attn_kv_b leaves them."""
        seen.append(len(latent))
        both = torch.cat([k_b, v_b], 1).to(device)
        joined = torch.einsum("sr,hor->sho", latent.float(), both).bfloat16()
        return joined[..., :nope], joined[..., nope:]

    found = mla_prefill.attend(
        q_nope.to(device), q_rope.to(device), cache, start, expand, v, 0.1, arch,
        workspace=2 * heads * (nope + v) * 128,
    )  # fmt: skip
    assert sum(seen) == end and max(seen) == min(128, end)
    latent, k_rope = rows[:end].split([rank, rope], -1)
    latent = latent.bfloat16()  # what an FP8 row is unpacked to
    keys = torch.einsum("sr,hor->sho", latent.float(), k_b).bfloat16()
    values = torch.einsum("sr,hor->sho", latent.float(), v_b).bfloat16()
    for head in range(heads):
        queries = torch.cat([q_nope[:, head], q_rope[:, head]], -1)[:, None]
        joined = torch.cat([keys[:, head], k_rope.bfloat16()], -1)
        weights = reference(queries, joined, start, 0.1)[:, 0]
        assert error(found[:, head], weights @ values[:, head].double()) < TOLERANCE


def test_every_multiprocessor_gets_a_share() -> None:
    assert mla.splits_for(128, 132) == 33
    assert mla.splits_for(128, 82) == 20
    assert mla.splits_for(8 * 128, 128) == 4
    assert mla.splits_for(8, 128) == MAX_SPLITS
