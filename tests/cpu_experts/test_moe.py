"""moe_forward against a loop over tokens and experts in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cpu_experts import Activations, BadTensor, ExpertBank, get_threads, moe_forward, set_threads
from tests.cpu_experts.blocks import ideal, quantised, random_tensor, relative

CLOSE = 2e-3  # an h near the middle of two int8 steps may be rounded to the other one


def make_bank(
    formats: tuple[str, str, str], shape: tuple[int, int, int], rng: np.random.Generator
) -> ExpertBank:
    experts, inter, hidden = shape
    sizes = ((experts, inter, hidden),) * 2 + ((experts, hidden, inter),)
    return ExpertBank(*(random_tensor(f, s, rng) for f, s in zip(formats, sizes, strict=True)))


def reference(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, bank: ExpertBank) -> np.ndarray:
    """The same sum, one expert of one token at a time, with the same roundings to int8."""
    gate, up, down = (
        ideal(w).reshape(w.count, w.rows, w.cols).astype(np.float64)
        for w in (bank.gate, bank.up, bank.down)
    )
    x_gate, x_up = (quantised(x, w.format.name) for w in (bank.gate, bank.up))
    out = np.zeros((len(x), bank.hidden))
    for t, k in np.ndindex(*ids.shape):
        e = ids[t, k]
        if e < 0:
            continue
        g, u = gate[e] @ x_gate[t], up[e] @ x_up[t]
        h = (g * (0.5 + 0.5 * np.tanh(g / 2)) * u).astype(np.float32)
        out[t] += weights[t, k] * (down[e] @ quantised(h[None], bank.down.format.name)[0])
    return out


def run(
    bank: ExpertBank, ids: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x = rng.normal(0, 0.5, (len(ids), bank.hidden)).astype(np.float32)
    weights = rng.random(ids.shape).astype(np.float32)
    y = moe_forward(x, ids, weights, bank)
    assert relative(y, reference(x, ids, weights, bank)) < CLOSE
    return x, ids, weights, y


def pick(tokens: int, k: int, experts: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation(experts)[:k] for _ in range(tokens)]).astype(np.int32)


@pytest.mark.parametrize("tokens", [1, 2, 8, 65, 300])
def test_ragged_groups(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    bank = make_bank(("Q8_0", "Q8_0", "Q8_0"), (16, 128, 256), rng)
    run(bank, pick(tokens, 3, 16, rng), rng)


@pytest.mark.parametrize(
    "formats",
    [
        ("Q4_K", "Q4_K", "Q6_K"),
        ("Q2_K", "Q2_K", "Q3_K"),
        ("Q5_K", "IQ4_XS", "Q8_0"),
        ("Q4_0", "Q4_1", "Q5_0"),
        ("F32", "F32", "F32"),
        ("BF16", "Q4_K", "IQ4_NL"),
        ("FP8_E4M3", "FP8_E4M3", "FP8_E4M3"),
    ],
)
def test_formats_may_differ(formats: tuple[str, str, str]) -> None:
    rng = np.random.default_rng(1)
    bank = make_bank(formats, (4, 512, 256), rng)
    run(bank, pick(5, 2, 4, rng), rng)


def test_float_weights_are_as_exact_as_float32() -> None:
    rng = np.random.default_rng(2)
    bank = make_bank(("F32", "F32", "F32"), (4, 160, 192), rng)
    x, ids, weights, y = run(bank, pick(9, 2, 4, rng), rng)
    assert relative(y, reference(x, ids, weights, bank)) < 2e-6


def test_all_tokens_to_one_expert_and_empty_experts() -> None:
    rng = np.random.default_rng(3)
    bank = make_bank(("Q4_K", "Q4_K", "Q4_K"), (8, 256, 512), rng)
    run(bank, np.full((130, 1), 6, dtype=np.int32), rng)


def test_a_bank_of_one_is_a_dense_layer() -> None:
    rng = np.random.default_rng(4)
    gate, up = (random_tensor("Q8_0", (352, 256), rng) for _ in range(2))
    bank = ExpertBank(gate, up, random_tensor("Q8_0", (256, 352), rng))
    run(bank, np.zeros((7, 1), dtype=np.int32), rng)


def test_negative_ids_are_skipped() -> None:
    rng = np.random.default_rng(5)
    bank = make_bank(("Q8_0", "Q8_0", "Q8_0"), (4, 128, 128), rng)
    ids = pick(6, 3, 4, rng)
    ids[2], ids[4, 1] = -1, -1
    _, _, _, y = run(bank, ids, rng)
    assert not y[2].any()


def test_neither_threads_nor_activations_change_a_bit() -> None:
    rng = np.random.default_rng(6)
    bank = make_bank(("Q4_K", "Q4_K", "Q6_K"), (8, 512, 768), rng)
    x, ids, weights, y = run(bank, pick(33, 4, 8, rng), rng)
    np.testing.assert_array_equal(moe_forward(Activations(x), ids, weights, bank), y)
    threads = get_threads()
    try:
        for n in (1, 3):
            set_threads(n)
            np.testing.assert_array_equal(moe_forward(x, ids, weights, bank), y)
    finally:
        set_threads(threads)


def test_out_is_used_and_no_tokens_are_fine() -> None:
    rng = np.random.default_rng(7)
    bank = make_bank(("Q8_0", "Q8_0", "Q8_0"), (4, 128, 128), rng)
    out = np.full((2, 128), 7, dtype=np.float32)
    x, ids = rng.normal(0, 1, (2, 128)).astype(np.float32), pick(2, 2, 4, rng)
    weights = np.ones((2, 2), dtype=np.float32)
    assert moe_forward(x, ids, weights, bank, out) is out
    np.testing.assert_array_equal(out, moe_forward(x, ids, weights, bank))
    none = moe_forward(x[:0], ids[:0], weights[:0], bank)
    assert none.shape == (0, 128)


def test_refusals() -> None:
    rng = np.random.default_rng(8)
    bank = make_bank(("Q8_0", "Q8_0", "Q8_0"), (4, 128, 256), rng)
    x, weights = np.zeros((1, 256), dtype=np.float32), np.ones((1, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="bank has 4"):
        moe_forward(x, np.full((1, 1), 4, dtype=np.int32), weights, bank)
    with pytest.raises(ValueError, match="ids"):
        moe_forward(x, np.zeros((2, 1), dtype=np.int32), weights, bank)
    with pytest.raises(BadTensor, match="down"):
        ExpertBank(bank.gate, bank.up, bank.gate)
