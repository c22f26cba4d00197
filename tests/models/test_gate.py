"""The router against the papers' formulas written out for one token, for every method."""

import numpy as np
import pytest
import torch

from cpu_experts import QuantTensor
from localr1.models.config import ModelConfig
from localr1.models.gate import Gate
from tests import toy

METHODS = {
    "v3": {"n_group": 4, "topk_group": 2},
    "v3, one group": {"n_group": 1, "topk_group": 1},
    "v3, not normalised": {"norm_topk_prob": False},
    "v2, greedy": {"version": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "v2, groups": {"version": 2, "topk_method": "group_limited_greedy"},
}


def f32(values: np.ndarray) -> QuantTensor:
    values = np.ascontiguousarray(np.atleast_2d(values), np.float32)
    return QuantTensor("F32", values.shape, (values.view(np.uint8).reshape(-1),))


def by_hand(c: ModelConfig, logits: np.ndarray, bias: np.ndarray) -> dict[int, float]:
    """Expert -> weight, in float64, one step of the definition after the other."""
    if c.scoring_func == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits) / np.exp(logits).sum()
    choice = scores + bias
    if c.topk_method != "greedy":
        groups = choice.reshape(c.n_group, -1)
        counted = 2 if c.topk_method == "noaux_tc" else 1
        strength = np.sort(groups, axis=1)[:, -counted:].sum(1)
        closed = np.argsort(strength)[: c.n_group - c.topk_group]
        groups[closed] = -np.inf
    chosen = np.argsort(choice)[-c.n_experts_per_tok :]
    weights = scores[chosen]
    if c.norm_topk_prob:
        weights = weights / weights.sum()
    return dict(zip(chosen.tolist(), weights * c.routed_scaling_factor, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_gate_follows_its_definition(method: str, n_tokens: int):
    config = ModelConfig.from_hf(toy.config(**METHODS[method]).to_dict())
    rng = np.random.default_rng(3)
    router = rng.normal(size=(config.n_routed_experts, config.hidden_size)) / 4
    bias = 0.1 * rng.normal(size=config.n_routed_experts) * (config.scoring_func == "sigmoid")
    weights = {"blk.1.ffn_gate_inp.weight": f32(router), "blk.1.exp_probs_b.bias": f32(bias)}
    gate = Gate(config, weights, "blk.1")
    for _ in range(40 // n_tokens):
        x = rng.normal(size=(n_tokens, config.hidden_size)).astype(np.float32)
        ids, routed = gate(torch.from_numpy(x))
        assert ids.dtype == torch.int32
        for t in range(n_tokens):
            expected = by_hand(config, router @ x[t], bias)
            found = dict(zip(ids[t].tolist(), routed[t].tolist(), strict=True))
            assert found == pytest.approx(expected, rel=1e-5)  # float32 against float64
