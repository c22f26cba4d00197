"""RMSNorm, the residual sum before it, and SwiGLU against float64."""

from __future__ import annotations

import pytest
import torch

from localr1.gpu.activation import swiglu
from localr1.gpu.norm import rms_norm
from tests.gpu.test_rope import BF16, close

EPS = 1e-6
FLOAT = 2**-20  # a few roundings of float32


@pytest.mark.parametrize(("n_tokens", "width"), [(1, 7168), (3, 1536), (5, 100), (2, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(device: str, n_tokens: int, width: int, dtype: torch.dtype) -> None:
    joined = torch.randn(n_tokens, width + 24).to(device)  # beside another projection's columns
    x, weight = joined[:, :width], 1 + torch.randn(width).to(device) / 8
    out = torch.full((n_tokens, width), float("nan"), dtype=dtype, device=device)
    assert rms_norm(x, weight, EPS, out=out) is out
    close(out, normed(x, weight), FLOAT if dtype == torch.float32 else BF16)
    close(rms_norm(x, weight, EPS), normed(x, weight), FLOAT)


def test_norm_behind_a_sum(device: str) -> None:
    x, add = torch.randn(4, 700).to(device), torch.randn(4, 700).to(device)
    weight = torch.rand(700).to(device)
    for place in (None, add):  # which may become the answer
        expected = x + add
        out = rms_norm(x, weight, EPS, add, place)
        assert torch.equal(x, expected) and (place is None or out is add)
        close(out, normed(expected, weight), FLOAT)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.cpu().double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.cpu()


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
def test_swiglu(device: str, source: torch.dtype, target: torch.dtype) -> None:
    both = (4 * torch.randn(3, 2, 1100)).to(source).to(device)
    gate, up = both[:, 0], both[:, 1]
    out = torch.empty(3, 1100, dtype=target, device=device)
    expected = torch.nn.functional.silu(gate.cpu().double()) * up.cpu().double()
    close(swiglu(gate, up, out), expected, FLOAT if target == torch.float32 else BF16)
    assert swiglu(gate, up).dtype == source
