"""The sampler against its definition, on small vocabularies whose probabilities are known."""

import numpy as np
import pytest

from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import LocalR1Error


def frequencies(logits: np.ndarray, n: int = 4000, **params: float) -> np.ndarray:
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "seed": 1, **params}))
    return np.bincount([sampler(logits) for _ in range(n)], minlength=len(logits)) / n


def test_draws_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    # Four standard deviations of a frequency over 4,000 draws.
    assert np.abs(frequencies(logits) - [0.5, 0.3, 0.15, 0.05]).max() < 4 * np.sqrt(0.25 / 4000)


def test_temperature_sharpens():
    logits = np.log(np.array([0.6, 0.4], np.float32))
    expected = 0.6**2 / (0.6**2 + 0.4**2)
    assert abs(frequencies(logits, temperature=0.5)[0] - expected) < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.94}, [0, 1, 2]),
        ({"min_p": 0.5}, [0, 1]),
        ({"top_k": 3, "top_p": 0.85}, [0, 1, 2]),
    ],
)
def test_filters_leave_the_right_tokens(params: dict[str, float], left: list[int]):
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert np.flatnonzero(frequencies(logits, 500, **params)).tolist() == left


def test_top_p_is_exact_beyond_the_first_look():
    """A flat distribution over 5,000 tokens: top-p 0.9 keeps 4,500 of them."""
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.9))
    ids, _ = sampler._candidates(np.zeros(5000, np.float32))
    assert abs(len(ids) - 4500) <= 1
    assert sorted(ids) == list(range(len(ids)))  # equal ones in the order of their ids


def test_greedy_and_penalty():
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    assert Sampler(SamplingParams(temperature=0))(logits) == 1
    assert Sampler(SamplingParams(temperature=0, repetition_penalty=1.2), [1])(logits) == 2


def test_same_seed_same_tokens():
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    first, second = (Sampler(SamplingParams(seed=7)) for _ in range(2))
    assert [first(logits) for _ in range(50)] == [second(logits) for _ in range(50)]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_refused(params: dict[str, float]):
    with pytest.raises(LocalR1Error) as caught:
        SamplingParams(**params)
    assert caught.value.code == 2
    assert next(iter(params)) in str(caught.value)
