"""Sampling on the GPU against `Sampler`: the same uniform number draws the same token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localr1.engine.sampler import Sampler, SamplingParams
from localr1.gpu.sampling import UNSETTLED, Workspace, sample

RNG = np.random.default_rng(0)


class Given:
    """A generator whose next uniform number is known."""

    def __init__(self, uniform: float) -> None:
        self.uniform = uniform

    def random(self) -> float:
        return self.uniform


class Draws:
    """One vocabulary's sampler on the device and its twin on the CPU."""

    def __init__(self, vocab: int, device: str, seen: list[int] | None = None, **params: float):
        self.params = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, **params})
        self.device, self.work = device, Workspace.empty(vocab, device)
        self.sampler = Sampler(self.params, seen or ())
        self.seen = None
        if seen is not None:
            self.seen = torch.zeros(vocab, dtype=torch.uint8, device=device)
            self.seen[seen] = 1

    def device_token(self, logits: np.ndarray, uniform: float) -> int:
        p = self.params
        values = [p.temperature, p.top_p, p.min_p, p.top_k, p.repetition_penalty, uniform]
        settings = torch.tensor(values, dtype=torch.float64, device=self.device)
        token = torch.full((1,), -9, dtype=torch.int32, device=self.device)
        again = torch.empty_like(token)
        on_device = torch.from_numpy(logits).to(self.device)
        sample(on_device, settings, self.seen, self.work, token, again)
        assert int(again) == int(token)
        return int(token)

    def cpu_token(self, logits: np.ndarray, uniform: float) -> int:
        self.sampler.random = Given(uniform)
        return self.sampler(logits)


FILTERS: list[dict[str, float]] = [
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 7},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.7, "min_p": 0.2},
    {"temperature": 0.3},
    {"top_p": 1e-9},
    {"min_p": 1.0},
]


@pytest.mark.parametrize("params", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [300, 1100])
def test_same_uniform_same_token(device: str, params: dict[str, float], vocab: int) -> None:
    draws = Draws(vocab, device, **params)
    for uniform in (0.0, 0.6, 1 - 1e-6, RNG.random()):
        logits = RNG.normal(0, 3, vocab).astype(np.float32)
        assert draws.device_token(logits, uniform) == draws.cpu_token(logits, uniform)


def test_ties_go_by_id(device: str) -> None:
    """Few distinct logits: a filter cuts through equal ones, and the draw falls among them."""
    for params in FILTERS:
        if "top_k" in params:
            continue
        draws = Draws(200, device, **params)
        for uniform in (0.0, 0.4, 0.99):
            logits = RNG.integers(0, 3, 200).astype(np.float32)
            assert draws.device_token(logits, uniform) == draws.cpu_token(logits, uniform)


def test_top_k_cuts_ties_by_id(device: str) -> None:
    logits = np.array([0, 1, 1, 2, 1, 1], np.float32)
    draws = Draws(6, device, temperature=10.0, top_k=3)
    assert [draws.device_token(logits, u) for u in (0.0, 0.4, 0.99)] == [3, 1, 2]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalty_and_what_was_seen(device: str, temperature: float) -> None:
    draws = Draws(200, device, [3, 9, 17], temperature=temperature, repetition_penalty=1.4)
    logits = RNG.normal(0, 2, 200).astype(np.float32)
    logits[[3, 9, 17]] = [9, 8.5, -2]
    for uniform in RNG.random(6):  # the same logits: every drawn token weighs less from then on
        assert draws.device_token(logits, uniform) == draws.cpu_token(logits, uniform)
    assert draws.seen is not None
    assert set(draws.seen.nonzero().flatten().tolist()) == draws.sampler.seen


def test_the_whole_vocabulary_of_r1(device: str) -> None:
    """Peaked as R1's are: a few thousand candidates of 129,280 settle it."""
    draws = Draws(129280, device, temperature=0.6, top_p=0.95)
    logits = RNG.normal(0, 2.5, 129280).astype(np.float32)
    logits[RNG.integers(0, 129280, 30)] += 12
    for uniform in (0.98,):
        assert draws.device_token(logits, uniform) == draws.cpu_token(logits, uniform)


def test_a_flat_distribution_is_not_settled(device: str) -> None:
    """And says so, leaving `seen` alone, rather than draw from a part of it."""
    flat = np.zeros(5000, np.float32)
    assert Draws(5000, device).device_token(flat, 0.5) == UNSETTLED
    draws = Draws(4600, device, [1], temperature=20.0, top_p=0.99, repetition_penalty=1.1)
    assert draws.device_token(RNG.normal(0, 1, 4600).astype(np.float32), 0.2) == UNSETTLED
    assert draws.seen is not None and int(draws.seen.sum()) == 1
    tokens = [Draws(5000, device, top_k=4).device_token(flat, u) for u in (0.0, 0.6)]
    assert tokens == [UNSETTLED, UNSETTLED]  # 5,000 equal ones are more than the candidates
