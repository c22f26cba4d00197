"""Every row of FORMATS: dequantisation, and products against two oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_experts import (
    FORMATS,
    Activations,
    BadTensor,
    QuantTensor,
    UnsupportedFormat,
    format_of,
    matmul,
    matmul_stack,
    matmul_stack_t,
)
from cpu_experts.kernels.tile_code import Tile, tile_product
from tests.cpu_experts.blocks import (
    QUANTISED,
    SCALES,
    ideal,
    quantised,
    random_bytes,
    random_tensor,
    relative,
)

ALL = tuple(FORMATS)
TIGHT = 1e-5  # float32 sums of products that are exact, in another order than the oracle's
LOOSE = 0.02  # the activation's rounding to int8; random bytes cancel more than real weights


def columns(name: str, n: int) -> int:
    """About n columns that the format can hold."""
    block = FORMATS[name].block_values
    return max(block, n // block * block)


def check(name: str, rows: int, cols: int, tokens: int, rng: np.random.Generator) -> None:
    w = random_tensor(name, (rows, cols), rng)
    x = rng.normal(0, 1, (tokens, cols)).astype(np.float32)
    y, weights = matmul(x, w), ideal(w).astype(np.float64)
    rounded = quantised(x, name)
    wanted = rounded @ weights.T
    # A few sums may cancel to almost nothing, which float32 sums in another order do not.
    size = max(np.linalg.norm(wanted), 0.01 * np.linalg.norm(np.abs(rounded) @ np.abs(weights).T))
    tight = float(np.linalg.norm(y - wanted) / max(size, 1e-30))
    assert tight < TIGHT, f"{name} {rows}x{cols}, {tokens} tokens: {tight:.2e}"
    if rows * tokens > 100:
        loose = relative(y, x.astype(np.float64) @ weights.T)
        assert loose < (LOOSE if name in QUANTISED else 1e-6), f"{name}: {loose:.2e}"


@pytest.mark.parametrize("name", ALL)
def test_dequantize_equals_gguf(name: str) -> None:
    w = random_tensor(name, (3, 5, 768), np.random.default_rng(1))
    np.testing.assert_array_equal(w.dequantize(), ideal(w))
    np.testing.assert_array_equal(w.dequantize(2), ideal(w)[2])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tokens", [1, 3, 9, 70])
def test_product_against_both_oracles(name: str, tokens: int) -> None:
    check(name, 50, columns(name, 1440), tokens, np.random.default_rng(tokens))


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_two_terms_leave_a_rounding_of_15_bits(name: str, tokens: int) -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(0, 1, (tokens, 512)).astype(np.float32)
    w = random_tensor(name, (64, 512), rng)
    y = matmul(x, w, terms=2)
    size = np.linalg.norm(np.abs(x).astype(np.float64) @ np.abs(ideal(w)).T)
    assert np.linalg.norm(y - x.astype(np.float64) @ ideal(w).T.astype(np.float64)) < 5e-5 * size
    np.testing.assert_array_equal(matmul(Activations(x), w, terms=2), y)
    stack = random_tensor(name, (3, 32, 512), rng)
    heads = np.stack([x, -x, 2 * x], axis=1)
    got = matmul_stack(heads, stack, terms=2)
    for h in range(3):
        one = QuantTensor(name, (32, 512), (np.split(stack.parts[0], 3)[h],))
        np.testing.assert_array_equal(got[:, h], matmul(heads[:, h].copy(), one, terms=2))


@pytest.mark.parametrize("name", ALL)
def test_shortest_rows(name: str) -> None:
    rng = np.random.default_rng(2)
    for cols in {columns(name, n) for n in (1, 32, 96, 128, 256)}:
        for rows in (1, 17):
            check(name, rows, cols, 2, rng)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(ALL),
    rows=st.integers(1, 70),
    cols=st.integers(1, 1600),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(name: str, rows: int, cols: int, tokens: int, seed: int) -> None:
    check(name, rows, columns(name, cols), tokens, np.random.default_rng(seed))


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("fill", [0, 0x55, 0x77, 0x80, 0xAA, 0xFF])
@pytest.mark.parametrize("tokens", [1, 16])
def test_extreme_blocks(name: str, fill: int, tokens: int) -> None:
    """Every quant, scale and minimum at an extreme, against activations at an extreme.

    All products have one sign here, so that sums are as big as they can get: what overflows int16
    or int32 anywhere is far off.
    """
    weights, cols = FORMATS[name], 512
    raw = np.full((8, weights.row_bytes(cols)), fill, dtype=np.uint8)
    blocks = raw.reshape(-1, weights.block_bytes)
    for offset in SCALES.get(name, (0,)):
        blocks[:, offset : offset + 2] = np.array([1.0], dtype=np.float16).view(np.uint8)
    w = QuantTensor(name, (8, cols), (raw,))
    wanted = ideal(w).astype(np.float64)
    for x in (np.full((tokens, cols), 3.0), np.full((tokens, cols), -3.0), np.sign(wanted[:1])):
        x = np.repeat(x[:1], tokens, axis=0).astype(np.float32)
        size = np.abs(quantised(x, name)) @ np.abs(wanted).T
        error = np.abs(matmul(x, w) - quantised(x, name) @ wanted.T)
        assert (error <= TIGHT * size + 1e-30).all()
        error = np.abs(matmul(x, w, terms=2) - x @ wanted.T)
        assert (error <= 5e-5 * (np.abs(x) @ np.abs(wanted).T) + 1e-30).all()


@pytest.mark.parametrize("name", ALL)
def test_zeros_give_zeros(name: str) -> None:
    cols = columns(name, 256)
    rng = np.random.default_rng(3)
    zero = np.zeros((2, cols), dtype=np.float32)
    assert not matmul(zero, random_tensor(name, (9, cols), rng)).any()
    raw = np.zeros((9, FORMATS[name].row_bytes(cols)), dtype=np.uint8)
    scales = (np.ones((1, 2), dtype=np.float32),) if name == "FP8_E4M3" else ()
    x = rng.normal(0, 1, (2, cols)).astype(np.float32)
    assert not matmul(x, QuantTensor(name, (9, cols), (raw,), scales)).any()


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e25])
def test_tiny_and_huge_activations_stay_finite(size: float) -> None:
    for name in ("Q8_0", "Q4_K"):
        w = random_tensor(name, (16, 256), np.random.default_rng(4), scale=1e-3)
        x = (np.random.default_rng(5).normal(0, 1, (3, 256)) * size).astype(np.float32)
        assert np.isfinite(matmul(x, w)).all()


@pytest.mark.parametrize("name", ALL)
def test_stacks(name: str) -> None:
    rng = np.random.default_rng(6)
    w = random_tensor(name, (5, 96, 256), rng)
    weights = ideal(w).astype(np.float64)
    x = rng.normal(0, 1, (3, 5, 256)).astype(np.float32)
    wanted = np.einsum("tnc,nrc->tnr", quantised(x, name), weights)
    assert relative(matmul_stack(x, w), wanted) < TIGHT
    x = rng.normal(0, 1, (3, 5, 96)).astype(np.float32)
    wanted = np.einsum("tnr,nrc->tnc", x.astype(np.float64), weights)
    assert relative(matmul_stack_t(x, w), wanted) < 2e-6


def test_parts_may_be_separate_arrays() -> None:
    rng = np.random.default_rng(7)
    parts = tuple(random_bytes("Q4_K", 32, 256, rng) for _ in range(3))
    apart = QuantTensor("Q4_K", (3, 32, 256), parts)
    together = QuantTensor("Q4_K", (3, 32, 256), (np.stack(parts),))
    np.testing.assert_array_equal(apart.dequantize(), together.dequantize())
    x = rng.normal(0, 1, (2, 3, 256)).astype(np.float32)
    np.testing.assert_array_equal(matmul_stack(x, apart), matmul_stack(x, together))


def test_activations_and_out_change_nothing() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(0, 1, (4, 512)).astype(np.float32)
    shared, out = Activations(x), np.empty((4, 64), dtype=np.float32)
    for name in ALL:
        w = random_tensor(name, (64, 512), rng)
        y = matmul(x, w)
        np.testing.assert_array_equal(matmul(shared, w), y)
        assert matmul(x, w, out) is out
        np.testing.assert_array_equal(out, y)
    readonly = np.asfortranarray(x)
    readonly.flags.writeable = False
    np.testing.assert_array_equal(matmul(readonly, w), y)


def test_refusals_name_the_reason() -> None:
    raw = np.zeros(144 * 4, dtype=np.uint8)
    with pytest.raises(UnsupportedFormat, match="Q9_X"):
        QuantTensor("Q9_X", (1, 256), (raw,))
    with pytest.raises(UnsupportedFormat, match="137"):
        format_of(137)
    with pytest.raises(BadTensor, match="bytes"):
        QuantTensor("Q4_K", (5, 256), (raw,))
    with pytest.raises(ValueError, match="multiples of 256"):
        QuantTensor("Q4_K", (4, 128), (raw,))
    w = QuantTensor("Q4_K", (4, 256), (raw,))
    with pytest.raises(ValueError, match="reads"):
        matmul(np.zeros((1, 255), dtype=np.float32), w)
    with pytest.raises(ValueError, match="out must be"):
        matmul(np.zeros((1, 256), dtype=np.float32), w, np.empty((1, 5), dtype=np.float32))
    assert format_of(12).name == "Q4_K"


def test_products_of_tiles_have_names_of_their_own() -> None:
    """What is named alike is one symbol when kernels from two processes' caches are loaded."""
    tiles = [Tile(6, 32), Tile(6, 16), Tile(4, 32), Tile(6, 32, narrow=True)]
    assert len({repr(tile_product(tile)) for tile in tiles}) == len(tiles)
