"""Routed experts on AMX against a float64 loop over experts: any choice, any number of waves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cpu_experts import ExpertBank, amx, bf16_experts, cpu, moe_forward
from tests.cpu_experts.blocks import random_tensor, relative

EXPERTS, INTER, HIDDEN, SLOTS = 6, 256, 512, 2


pytestmark = pytest.mark.usefixtures("no_tier_is_named")


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    rng = np.random.default_rng(1)
    into, out = (EXPERTS, INTER, HIDDEN), (EXPERTS, HIDDEN, INTER)
    formats = (("Q4_K", into), ("Q8_0", into), ("Q6_K", out))
    return ExpertBank(*(random_tensor(name, shape, rng) for name, shape in formats))


def exact(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, bank: ExpertBank) -> np.ndarray:
    gate, up, down = (w.dequantize().astype(np.float64) for w in (bank.gate, bank.up, bank.down))
    out = np.zeros((len(x), bank.hidden))
    for expert in range(bank.n_experts):
        for slot in range(ids.shape[1]):
            chosen = ids[:, slot] == expert
            g = x[chosen] @ gate[expert].T
            h = g / (1 + np.exp(-g)) * (x[chosen] @ up[expert].T)
            out[chosen] += weights[chosen, slot, None] * (h @ down[expert].T)
    return out


def forward(bank: ExpertBank, ids: np.ndarray) -> tuple[np.ndarray, float]:
    """The answer, and its distance from the exact one."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 0.1, (len(ids), bank.hidden)).astype(np.float32)
    weights = rng.random(ids.shape).astype(np.float32)
    assert bf16_experts.suits(ids.size, bank)
    out = np.full(x.shape, np.nan, dtype=np.float32)
    moe_forward(x, ids, weights, bank, out)
    return out, relative(out, exact(x, ids, weights, bank))


def choice(n_tokens: int, most: int = EXPERTS) -> np.ndarray:
    rng = np.random.default_rng(3)
    chosen = [rng.permutation(most)[:SLOTS] for _ in range(n_tokens)]
    return np.array(chosen, dtype=np.int32)


@pytest.mark.usefixtures("on_amx")
@pytest.mark.parametrize("wave", [64, 160, 4096])
def test_experts_in_waves(bank: ExpertBank, wave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert that no token takes, pairs that are computed elsewhere, more than a wave holds."""
    ids = choice(300, EXPERTS - 1)
    ids[::7, 1] = -1
    monkeypatch.setattr(bf16_experts, "_WAVE", wave)
    assert forward(bank, ids)[1] < 5e-3


@pytest.mark.usefixtures("on_amx")
def test_one_expert_for_all(bank: ExpertBank) -> None:
    ids = np.full((600, SLOTS), -1, dtype=np.int32)
    ids[:, 1] = 4
    assert forward(bank, ids)[1] < 5e-3


@pytest.mark.usefixtures("on_amx")
def test_nobody_asked_is_zero(bank: ExpertBank) -> None:
    assert not forward(bank, np.full((300, SLOTS), -1, dtype=np.int32))[0].any()


@pytest.mark.usefixtures("on_amx")
def test_an_expert_that_is_not_there_is_refused(bank: ExpertBank) -> None:
    ids = choice(300)
    ids[77, 1] = EXPERTS
    with pytest.raises(ValueError, match="an expert id is 6; the bank has 6"):
        moe_forward(np.zeros((300, HIDDEN), np.float32), ids, np.ones(ids.shape, np.float32), bank)


def test_what_it_takes(bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "in_use", lambda: True)
    least = bf16_experts.LEAST_TOKENS * EXPERTS
    assert bf16_experts.suits(least, bank)
    assert not bf16_experts.suits(least - 1, bank)
    rng = np.random.default_rng(1)
    small = [random_tensor("Q8_0", (2, 64, 64), rng) for _ in range(3)]
    assert not bf16_experts.suits(1 << 20, ExpertBank(*small))
    floats = [random_tensor("BF16", (2, 256, 256), rng) for _ in range(3)]
    assert not bf16_experts.suits(1 << 20, ExpertBank(*floats))


@pytest.mark.skipif("avx512bf16" not in cpu.features(), reason="only tiles are emulated")
def test_emulated(tmp_path: Path) -> None:
    """These tests with emulated tiles (emulated_amx.py), and those of all shapes of products."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.cpu_experts.emulated_amx", "-k", "not every_format and not emulated"]
    command += [__file__, __file__.replace("experts.py", "products.py")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
