"""Products with every format against float64 on the weights that cpu_experts dequantises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from cpu_experts import QuantTensor
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.linear import expanded, gated_gemv, gemv, grouped, linear, matmul
from localr1.gpu.tiles import GemvTile, gemv_tile
from localr1.gpu.weights import GpuWeight, upload
from tests.cpu_experts.blocks import random_tensor

FORMATS = sorted(GPU_FORMATS)
FLOAT32 = 2e-6  # sums in float32
INT16 = 8e-5  # activations have a step of 2**-16 of the largest of 128
BF16 = 2**-7  # both factors have 8 bits, cut by the interpreter; a GPU rounds, for half the error

REAL_TILES = True  # see conftest.py


def most(name: str) -> float:
    """What products of few tokens may err by."""
    return INT16 if GPU_FORMATS[name].integer else FLOAT32


def weights(name: str, shape: tuple[int, ...], device: str) -> tuple[GpuWeight, torch.Tensor]:
    """Random weights on the device, and what they are, as float64."""
    tensor = random_tensor(name, shape, np.random.default_rng(len(name) + sum(shape)))
    return upload(tensor, device), exact(tensor)


def exact(tensor: QuantTensor) -> torch.Tensor:
    return torch.from_numpy(tensor.dequantize()).double()


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    out = out.cpu().double()
    assert out.shape == expected.shape
    return float((out - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FORMATS)
def test_expanded_is_exact(device: str, name: str) -> None:
    w, expected = weights(name, (2, 3, 512), device)
    assert torch.equal(expanded(w, torch.float32).cpu().double(), expected)
    # A GPU rounds to the nearest bf16, Triton's interpreter cuts.
    assert ((expanded(w).cpu().double() - expected).abs() <= 2**-7 * expected.abs()).all()


@pytest.mark.parametrize("name", FORMATS)
def test_gemv(device: str, name: str) -> None:
    """Rows that no tile divides; a tail of chunks that no step divides."""
    cols = 768 if GPU_FORMATS[name].block_values == 256 else 96
    w, expected = weights(name, (13, cols), device)
    x, add = torch.randn(2, cols), torch.randn(2, 13)
    out = torch.full((2, 13), float("nan"), device=device)
    assert gemv(x.to(device), w, out, add.to(device)) is out
    assert error(out, x.double() @ expected.T + add) < most(name)


@pytest.mark.parametrize("n_tokens", range(1, 9))
def test_gemv_of_few_tokens(device: str, n_tokens: int) -> None:
    w, expected = weights("Q4_K", (7, 1024), device)
    x = torch.randn(n_tokens, 1024)
    assert error(gemv(x.to(device), w), x.double() @ expected.T) < INT16


@pytest.mark.parametrize(
    "tile", [GemvTile(4, 1, 32, 1, 1), GemvTile(2, 4, 8, 2, 1), GemvTile(1, 2, 64, 1, 4)]
)
def test_gemv_in_other_tiles(device: str, tile: GemvTile) -> None:
    w, expected = weights("Q6_K", (19, 2304), device)
    x = torch.randn(1, 2304)
    assert error(gemv(x.to(device), w, tile=tile), x.double() @ expected.T) < INT16


def test_gemv_at_the_width_of_r1(device: str) -> None:
    w, expected = weights("Q4_K", (5, 7168), device)
    x = torch.randn(1, 7168)
    assert error(gemv(x.to(device), w), x.double() @ expected.T) < INT16


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "FP8_E4M3"])
def test_gated(device: str, name: str) -> None:
    rng = np.random.default_rng(1)
    gate, up = (random_tensor(name, (11, 512), rng, scale=0.001) for _ in range(2))
    x = torch.randn(2, 512)
    hidden = torch.nn.functional.silu(x.double() @ exact(gate).T) * (x.double() @ exact(up).T)
    both = upload([gate, up], device, stacked=True)
    assert error(gated_gemv(x.to(device), both), hidden) < most(name)
    out = torch.empty(2, 11, dtype=torch.bfloat16, device=device)
    assert error(gated_gemv(x.to(device), both, out), hidden) < BF16


@pytest.mark.parametrize(
    ("name", "rows", "cols"), [("Q8_0", 40, 32), ("F16", 19, 160), ("FP8_E4M3", 130, 160)]
)
def test_stacks(device: str, name: str, rows: int, cols: int) -> None:
    """A matrix and an input for each head; both parts of larger tensors."""
    w, expected = weights(name, (3, rows, cols), device)
    x = torch.randn(4, 3, cols + 24)[..., :cols]
    reference = torch.einsum("thc,hrc->thr", x.double(), expected)
    target = torch.empty(4, 3, rows + 7, device=device)[..., :rows]
    assert error(gemv(x.to(device), w, target), reference) < most(name)
    x = x.bfloat16()
    reference = torch.einsum("thc,hrc->thr", x.double(), expected)
    assert error(matmul(x.to(device), w), reference) < BF16


@pytest.mark.parametrize(("name", "cols"), [("Q4_K", 256), ("FP8_E4M3", 160)])
def test_chosen_matrices_of_a_stack(device: str, name: str, cols: int) -> None:
    """An expert's weights are found by its number in memory."""
    w, expected = weights(name, (5, 130, cols), device)
    ids = torch.tensor([3, 0], dtype=torch.int32)
    x = torch.randn(1, 2, cols)
    reference = torch.einsum("thc,hrc->thr", x.double(), expected[ids.long()])
    assert error(gemv(x.to(device), w, ids=ids.to(device)), reference) < most(name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bounds", [(0, 1, 1, 40), (0, 0, 0, 3), (0, 20, 60, 150)], ids=str)
def test_each_token_meets_its_own_matrix(device: str, name: str, bounds: tuple[int, ...]) -> None:
    """Matrices that no token meets, some that one or more than a tile of them meets."""
    cols = 256 if GPU_FORMATS[name].block_values == 256 else 160
    w, expected = weights(name, (3, 70, cols), device)
    x = torch.randn(bounds[-1], cols)
    pieces = zip(pairwise(bounds), expected, strict=True)
    reference = torch.cat([x[first:end].double() @ own.T for (first, end), own in pieces])
    out = grouped(x.to(device), w, bounds)
    assert error(out, reference) < (1e-5 if name == "F32" else BF16)


def test_all_tokens_meet_some_matrix(device: str) -> None:
    w, _ = weights("Q8_0", (2, 8, 32), device)
    for bounds in ((0, 4), (0, 2, 3), (1, 2, 4)):
        with pytest.raises(ValueError, match="does not share 4 tokens"):
            grouped(torch.randn(4, 32, device=device), w, bounds)


@pytest.mark.parametrize("name", FORMATS)
def test_matmul(device: str, name: str) -> None:
    cols = 512 if GPU_FORMATS[name].block_values == 256 else 160
    w, expected = weights(name, (70, cols), device)
    x = torch.randn(17, cols)
    out = linear(x.to(device), w)
    assert error(out, x.double() @ expected.T) < (1e-5 if name == "F32" else BF16)


def test_matmul_adds(device: str) -> None:
    w, expected = weights("Q4_0", (150, 64), device)
    x, add = torch.randn(140, 64).bfloat16(), torch.randn(140, 150)
    reference = x.double() @ expected.T + add
    sums = add.to(device)
    assert matmul(x.to(device), w, sums, sums) is sums
    assert error(sums, reference) < BF16


def test_joined_rows_meet_one_input(device: str) -> None:
    rng = np.random.default_rng(2)
    a, b = random_tensor("Q5_K", (20, 512), rng), random_tensor("Q5_K", (9, 512), rng)
    sent: list[int] = []
    w = upload([a, b], device, report=sent.append)
    assert w.shape == (29, 512) and sum(sent) == w.nbytes == a.nbytes + b.nbytes
    x = torch.randn(1, 512).bfloat16()
    expected = x.double() @ torch.cat([exact(a), exact(b)]).T
    assert error(gemv(x.to(device), w), expected) < INT16


def test_large_activations_stay_numbers(device: str) -> None:
    """Activations are scaled by 2**100 inside; R1's largest are some ten thousands."""
    w, expected = weights("IQ4_XS", (4, 256), device)
    x = torch.randn(1, 256) * 2.0**17
    assert error(gemv(x.to(device), w), x.double() @ expected.T) < FLOAT32


def test_what_does_not_fit_is_refused(device: str) -> None:
    w, _ = weights("Q8_0", (4, 64), device)
    x = torch.zeros(9, 64, device=device)
    with pytest.raises(ValueError, match="takes no activations"):
        gemv(x[:1, :32], w)
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        gemv(x, w)
    with pytest.raises(ValueError, match="out is"):
        gemv(x[:1], w, torch.zeros(1, 5, device=device))
    with pytest.raises(ValueError, match="stack of 2"):
        gated_gemv(x[:1], w)
    with pytest.raises(ValueError, match="multiples of 16"):
        weights("F32", (4, 24), device)
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match="one format and width"):
        upload([random_tensor(name, (2, 256), rng) for name in ("Q8_0", "Q4_0")], device)


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 8])
def test_tiles_fill_the_gpu(arch: int, n_tokens: int) -> None:
    """Where rows are few, several warps share each."""
    for rows, cols in ((2112, 7168), (24576, 1536), (7168, 16384), (65536, 512)):
        tile = gemv_tile(arch, "Q4_K", rows, cols, n_tokens)
        assert tile.rows * tile.width == 32 * tile.num_warps
        assert rows // (tile.repeat * tile.rows) * tile.num_warps >= 2048
