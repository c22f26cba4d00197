"""Activations as integers: by themselves, by the norm that makes them, what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localr1.gpu.activations import Activations, Integers, empty
from localr1.gpu.linear import chained, gated_gemv, gemv
from localr1.gpu.norm import rms_norm
from localr1.gpu.weights import upload
from tests.cpu_experts.blocks import random_tensor


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


@pytest.mark.parametrize(("name", "shape"), [("Q4_K", (256, 512)), ("Q8_0", (3, 128, 160))])
@pytest.mark.parametrize("n_tokens", [1, 2])
def test_a_product_hands_them_on(
    device: str, name: str, shape: tuple[int, ...], n_tokens: int
) -> None:
    """Twice: the first leaves what the second counts with."""
    w = upload(random_tensor(name, shape, np.random.default_rng(1)), device)
    for _ in range(2):
        x = Activations(torch.randn(n_tokens, *shape[:-2], shape[-1]).to(device))
        found = chained(x, w)
        assert torch.equal(found.values, gemv(x, w).flatten(1))
        check(found.integers, found.values)


def test_a_gated_product_hands_them_on(device: str) -> None:
    rng = np.random.default_rng(2)
    both = upload([random_tensor("Q6_K", (384, 256), rng) for _ in "gu"], device, stacked=True)
    x = Activations(torch.randn(1, 256).to(device))
    found = chained(x, both, gated=True)
    assert torch.equal(found.values, gated_gemv(x, both))
    check(found.integers, found.values)
