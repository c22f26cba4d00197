"""The router on the GPU: which experts a token takes, and with which weights.

Two launches: the logits of every expert, in full float32, and one program per token that chooses.
The choice is the CPU's (cpu_experts/routing.py), ties included: of equal experts the first is
taken, of equally weak groups the first is closed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from localr1.gpu import pdl
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, LatentSizes

FEW = 8  # tokens up to which each expert and token has a program of its own
_TILE = 32  # tokens, experts and columns of a tile beyond


@triton.jit
def few_logits_kernel(
    x, router, out, EXPERTS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Expert `program_id(0)`, token `program_id(1)`: a dot product, all of it in flight at once."""
    expert, token = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    row = tl.load(router + expert * HIDDEN + column, mask=inside, other=0.0)
    pdl.relay(PDL)  # the router's row is on its way
    row *= tl.load(x + token * HIDDEN + column, mask=inside, other=0.0)
    tl.store(out + token * EXPERTS + expert, tl.sum(row, 0))


@triton.jit
def many_logits_kernel(
    x, router, out, n_tokens, EXPERTS: tl.constexpr, HIDDEN: tl.constexpr, TILE: tl.constexpr
):
    """TILE tokens by TILE experts; float32 products, never tf32, which would turn choices."""
    token = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    expert = tl.program_id(1) * TILE + tl.arange(0, TILE)
    acc = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, HIDDEN, TILE):
        column = first + tl.arange(0, TILE)
        mask = (token < n_tokens)[:, None] & (column < HIDDEN)[None, :]
        a = tl.load(x + token[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
        mask = (expert < EXPERTS)[:, None] & (column < HIDDEN)[None, :]
        b = tl.load(router + expert[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    mask = (token < n_tokens)[:, None] & (expert < EXPERTS)[None, :]
    tl.store(out + token[:, None] * EXPERTS + expert[None, :], acc, mask=mask)


@triton.jit
def without_weakest_groups(choice, real, CLOSED: tl.constexpr, COUNTED: tl.constexpr):
    """`choice` [groups, experts of one], the CLOSED weakest groups at -inf.

    A group is as strong as the sum of its COUNTED (1 or 2) best experts.
    """
    strength = tl.max(choice, 1)
    if COUNTED == 2:
        place = tl.arange(0, choice.shape[1])[None, :]
        best = tl.argmax(choice, 1)[:, None]
        strength += tl.max(tl.where(place == best, float("-inf"), choice), 1)
    group = tl.arange(0, choice.shape[0])
    strength = tl.where(real, strength, float("inf"))
    for _ in tl.static_range(CLOSED):
        weakest = tl.argmin(strength, 0)
        strength = tl.where(group == weakest, float("inf"), strength)
        choice = tl.where((group == weakest)[:, None], float("-inf"), choice)
    return choice


@triton.jit
def choose_kernel(
    logits, bias, ids, weights, scale,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, CLOSED: tl.constexpr, COUNTED: tl.constexpr,
    TOP_K: tl.constexpr, SIGMOID: tl.constexpr, NORM: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Token `program_id(0)`: logits [GROUPS * SIZE] -> ids and weights [TOP_K]."""
    pdl.relay(PDL)
    token = tl.program_id(0)
    group, place = tl.arange(0, BLOCK_GROUPS)[:, None], tl.arange(0, BLOCK_SIZE)[None, :]
    real = (group < GROUPS) & (place < SIZE)
    expert = group * SIZE + place
    logit = tl.load(logits + token * (GROUPS * SIZE) + expert, mask=real, other=float("-inf"))
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = tl.exp(logit - tl.max(logit))
        score = score / tl.sum(score)
    choice = score
    if bias is not None:
        choice += tl.load(bias + expert, mask=real, other=0.0)
    choice = tl.where(real, choice, float("-inf"))
    if COUNTED > 0:
        there = tl.arange(0, BLOCK_GROUPS) < GROUPS
        choice = without_weakest_groups(choice, there, CLOSED, COUNTED)
    choice = tl.reshape(choice, [BLOCK_GROUPS * BLOCK_SIZE])
    score = tl.reshape(score, [BLOCK_GROUPS * BLOCK_SIZE])
    index = tl.arange(0, BLOCK_GROUPS * BLOCK_SIZE)
    slot = tl.arange(0, BLOCK_K)
    taken, weight = tl.zeros([BLOCK_K], tl.int32), tl.zeros([BLOCK_K], tl.float32)
    for k in tl.static_range(TOP_K):
        best = tl.argmax(choice, 0)
        value = tl.sum(tl.where(index == best, score, 0.0), 0)
        choice = tl.where(index == best, float("-inf"), choice)
        taken = tl.where(slot == k, best // BLOCK_SIZE * SIZE + best % BLOCK_SIZE, taken)
        weight = tl.where(slot == k, value, weight)
    if NORM:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    at = token * TOP_K + slot
    tl.store(ids + at, taken, mask=slot < TOP_K)
    tl.store(weights + at, weight * scale, mask=slot < TOP_K)


def route(
    x: torch.Tensor,
    router: torch.Tensor,
    bias: torch.Tensor | None,
    sizes: LatentSizes,
    scale: float,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Write ids int32 and weights float32 `[T, k]` of `x` float32 `[T, hidden]`.

    `router` float32 `[experts, hidden]`, `bias` float32 `[experts]` or None, `scale` the model's
    `routed_scaling_factor`.
    """
    n_tokens, hidden = x.shape
    experts = len(router)
    logits = torch.empty(n_tokens, experts, dtype=torch.float32, device=x.device)
    shape = {"EXPERTS": experts, "HIDDEN": hidden}
    if n_tokens <= FEW:
        grid = (experts, n_tokens)
        block = triton.next_power_of_2(hidden)
        launch(few_logits_kernel, grid, x, router, logits, num_warps=4, BLOCK=block, **shape)
    else:
        grid = (triton.cdiv(n_tokens, _TILE), triton.cdiv(experts, _TILE))
        launch(many_logits_kernel, grid, x, router, logits, n_tokens, TILE=_TILE, **shape)
    launch(
        choose_kernel, (n_tokens,), logits, bias, ids, weights, scale, num_warps=1,
        **_constants(sizes),
    )  # fmt: skip


def _constants(sizes: LatentSizes) -> dict[str, int]:
    limited = sizes.topk_method != "greedy" and sizes.n_group > sizes.topk_group
    groups = sizes.n_group if limited else 1
    size = sizes.n_routed_experts // groups
    return {
        "GROUPS": groups,
        "SIZE": size,
        "CLOSED": groups - sizes.topk_group if limited else 0,
        "COUNTED": (2 if sizes.topk_method == "noaux_tc" else 1) if limited else 0,
        "TOP_K": sizes.n_experts_per_tok,
        "SIGMOID": sizes.scoring_func == "sigmoid",
        "NORM": sizes.norm_topk_prob,
        "BLOCK_GROUPS": triton.next_power_of_2(groups),
        "BLOCK_SIZE": triton.next_power_of_2(size),
        "BLOCK_K": triton.next_power_of_2(sizes.n_experts_per_tok),
    }


def configurations(arch: int, sizes: LatentSizes = R1) -> Iterator[Configuration]:
    """Logits of few and of many tokens; the choice, where a bias joins it and where none does."""
    shape = {"EXPERTS": sizes.n_routed_experts, "HIDDEN": sizes.hidden_size}
    signature = {"x": "*fp32", "router": "*fp32", "out": "*fp32"}
    block = {"BLOCK": triton.next_power_of_2(sizes.hidden_size)}
    yield Configuration(few_logits_kernel, signature, shape | block, 4, 2)
    signature = signature | {"n_tokens": "i32"}
    yield Configuration(many_logits_kernel, signature, shape | {"TILE": _TILE}, 4, 2)
    signature = {"logits": "*fp32", "ids": "*i32", "weights": "*fp32", "scale": "fp32"}
    constants = _constants(sizes)
    yield Configuration(choose_kernel, signature | {"bias": "*fp32"}, constants, 1, 2)
    yield Configuration(choose_kernel, signature, constants | {"bias": None}, 1, 2)
