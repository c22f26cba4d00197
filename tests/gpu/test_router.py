"""The router on the GPU against the CPU's, with ties, and against its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from localr1.gpu import router
from localr1.gpu.sizes import R1, KnownSizes
from tests.gpu.routing import route_token

TINY_R1 = KnownSizes(
    hidden_size=256,
    vocab_size=768,
    n_heads=8,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    intermediate_size=512,
    moe_intermediate_size=256,
    n_routed_experts=16,
    n_experts_per_tok=4,
    n_group=4,
    topk_group=2,
)
V2 = {"scoring_func": "softmax", "norm_topk_prob": False}
METHODS = {
    "tiny-r1": TINY_R1,
    "r1": replace(R1, hidden_size=320),
    "one group": replace(TINY_R1, n_group=1, topk_group=1),
    "all groups": replace(TINY_R1, n_group=4, topk_group=4),
    "not normalised": replace(TINY_R1, norm_topk_prob=False),
    "v2, greedy": replace(TINY_R1, topk_method="greedy", n_routed_experts=12, **V2),
    "v2, groups": replace(
        TINY_R1, topk_method="group_limited_greedy", n_routed_experts=60, n_group=5,
        topk_group=3, **V2,
    ),
}  # fmt: skip


def on_cpu(sizes: KnownSizes, logits: np.ndarray, bias: np.ndarray, scale: float) -> list:
    """What `choose_experts` takes: (ids, weights) of each row."""
    limited = sizes.topk_method != "greedy" and sizes.n_group > sizes.topk_group
    counted = (2 if sizes.topk_method == "noaux_tc" else 1) if limited else 0
    found = []
    for row in logits:
        k = sizes.n_experts_per_tok
        ids, weights = np.empty((1, k), np.int32), np.empty((1, k), np.float32)
        route_token()(
            row, bias, sizes.scoring_func == "sigmoid", sizes.n_group, sizes.topk_group, counted,
            sizes.norm_topk_prob, scale, ids, weights,
        )  # fmt: skip
        found.append((ids[0], weights[0]))
    return found


def chosen(
    sizes: KnownSizes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, device: str
) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(x), sizes.n_experts_per_tok)
    ids = torch.full(shape, -7, dtype=torch.int32, device=device)
    weights = torch.full(shape, float("nan"), device=device)
    bias = None if bias is None else bias.to(device)
    router.route(x.to(device), weight.to(device), bias, sizes, 2.5, ids, weights)
    return ids.cpu().numpy(), weights.cpu().numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_tokens", [1, 5, 37])
def test_route(device: str, method: str, n_tokens: int) -> None:
    sizes = METHODS[method]
    x = torch.randn(n_tokens, sizes.hidden_size)
    weight = torch.randn(sizes.n_routed_experts, sizes.hidden_size) / sizes.hidden_size**0.5
    bias = torch.randn(sizes.n_routed_experts) / 10 if sizes.scoring_func == "sigmoid" else None
    ids, weights = chosen(sizes, x, weight, bias, device)
    zeros = np.zeros(sizes.n_routed_experts, np.float32)
    logits = (x.double() @ weight.double().T).float().numpy()
    expected = on_cpu(sizes, logits, zeros if bias is None else bias.numpy(), 2.5)
    for t, (own_ids, own_weights) in enumerate(expected):
        assert ids[t].tolist() == own_ids.tolist()
        np.testing.assert_allclose(weights[t], own_weights, rtol=2e-5)  # sums in another order


@pytest.mark.parametrize("method", METHODS)
def test_ties_fall_as_on_the_cpu(device: str, method: str) -> None:
    """Few distinct logits, each exact: nearly every choice meets equal experts and groups."""
    sizes = METHODS[method]
    n_tokens = 4
    logits = torch.randint(-1, 2, (n_tokens, sizes.n_routed_experts)).float()
    x = torch.zeros(n_tokens, sizes.hidden_size)
    x[:, :n_tokens] = torch.eye(n_tokens)
    weight = torch.zeros(sizes.n_routed_experts, sizes.hidden_size)
    weight[:, :n_tokens] = logits.T
    bias = torch.zeros(sizes.n_routed_experts)
    ids, weights = chosen(sizes, x, weight, bias, device)
    for t, (own_ids, own_weights) in enumerate(on_cpu(sizes, logits.numpy(), bias.numpy(), 2.5)):
        assert ids[t].tolist() == own_ids.tolist()
        np.testing.assert_allclose(weights[t], own_weights, rtol=2e-5)
