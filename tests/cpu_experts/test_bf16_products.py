"""Products of prompts on AMX: every format, every shape that they take, feed-forwards."""

import numpy as np
import pytest
import torch

import cpu_experts
from cpu_experts import Activations, ExpertBank, QuantTensor, amx, bf16_products
from tests.cpu_experts.blocks import QUANTISED, random_tensor, relative

pytestmark = pytest.mark.usefixtures("no_tier_is_named")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    cpu_experts.set_threads(request.param)
    yield request.param
    cpu_experts.set_threads(None)


def tokens(n: int, cols: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, cols)).astype(np.float32)


def weights(name: str, rows: int, cols: int) -> QuantTensor:
    return random_tensor(name, (rows, cols), np.random.default_rng(2))


def rounded(values: np.ndarray) -> np.ndarray:
    """To bf16, as float64."""
    return torch.from_numpy(values).bfloat16().double().numpy()


@pytest.mark.usefixtures("on_amx")
@pytest.mark.parametrize("name", QUANTISED)
def test_every_format_is_its_own_values_rounded_to_bf16(name: str):
    w, x = weights(name, 96, 768), tokens(50, 768)
    assert bf16_products.suits(len(x), w)
    found = bf16_products.product(Activations(x).tiles(), w)
    # A weight that lies between two bf16 numbers may go to either.
    assert relative(found, rounded(x) @ rounded(w.dequantize()).T) < 2e-4
    assert relative(found, x.astype(np.float64) @ w.dequantize().T) < 3e-3


@pytest.mark.usefixtures("on_amx")
@pytest.mark.parametrize("n_tokens", [48, 65, 1100])
@pytest.mark.parametrize(("rows", "cols"), [(32, 256), (288, 512), (544, 1280)])
def test_every_shape(threads: int, n_tokens: int, rows: int, cols: int):
    w, x = weights("Q4_K", rows, cols), tokens(n_tokens, cols)
    found = bf16_products.product(Activations(x).tiles(), w)
    assert found.shape == (n_tokens, rows)
    assert relative(found, rounded(x) @ rounded(w.dequantize()).T) < 2e-4


@pytest.mark.usefixtures("on_amx")
@pytest.mark.parametrize("n_tokens", [50, 700])
def test_a_feed_forward(threads: int, n_tokens: int):
    parts = [("Q4_K", 512, 256), ("Q8_0", 512, 256), ("Q6_K", 256, 512)]
    bank = ExpertBank(*(weights(*part) for part in parts))
    x = tokens(n_tokens, 256) / 8
    found = bf16_products.feed_forward(Activations(x).tiles(), bank)
    gate, up, down = (w.dequantize().astype(np.float64) for w in (bank.gate, bank.up, bank.down))
    g = x @ gate.T
    assert relative(found, (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T) < 5e-3


def test_what_it_does_not_take(monkeypatch: pytest.MonkeyPatch):
    whole = weights("Q4_0", 64, 256)
    assert bf16_products.suits(512, whole) == amx.granted()
    assert not bf16_products.suits(47, whole)
    assert not bf16_products.suits(512, whole, weights("Q4_0", 64, 288))
    assert not bf16_products.suits(512, weights("Q4_0", 48, 256))
    assert not bf16_products.suits(512, weights("BF16", 64, 256))
    monkeypatch.setenv("LOCALR1_ISA", "avx512_vnni")
    assert not bf16_products.suits(512, whole)


def test_who_is_not_granted_it_reads_prompts_without(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(amx, "granted", lambda: False)
    assert not bf16_products.suits(512, weights("Q4_0", 64, 256))
