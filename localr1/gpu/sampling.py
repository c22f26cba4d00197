"""From logits to a token id on the GPU: `Sampler`'s draw from a given uniform number.

`engine/sampler.py` is the definition: penalty, temperature, top-k, top-p, min-p, then the first of
the kept tokens, best first, whose running sum reaches the uniform number's share. Nothing is sorted
here. Weights `exp((logit - largest) / temperature)` become whole numbers of 2**-45, whose sums do
not depend on their order. The likeliest tokens, up to 4,096, are candidates; each counts those that
come before it and their weight, all pairs at once. What the filters keep, and which token is drawn,
follow from these two numbers: the sampler's own, unless a border lies within 1e-8 of the uniform
number.

A logit that is no finite number makes its block's largest one infinite, and the answer NOT_FINITE.
Where the candidates do not settle it (nearly flat distributions without top-k and top-p), the
answer is UNSETTLED and the caller draws on the CPU, with the same uniform number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, Sizes

UNSETTLED, NOT_FINITE = -1, -2
SETTINGS = ("temperature", "top_p", "min_p", "top_k", "repetition_penalty", "uniform")

_TEMPERATURE, _TOP_P, _MIN_P, _TOP_K, _PENALTY, _UNIFORM = map(tl.constexpr, range(6))
_UNSETTLED, _NOT_FINITE = tl.constexpr(UNSETTLED), tl.constexpr(NOT_FINITE)
_ONE = tl.constexpr(2.0**45)  # weight 1: 2**17 of them, more than a vocabulary, fit an int64
_BLOCK = tl.constexpr(1024)  # logits of one program
_MOST = tl.constexpr(4096)  # candidates
_BINS = tl.constexpr(64)  # of half a unit of (largest - logit) / temperature; the last has no end


_PAIRS = {"OWN": 32, "OTHERS": 64}  # a tile of `rank_kernel`
_PAIRS_ON_CPU = {"OWN": 256, "OTHERS": 512}  # the interpreter's time goes by operations


@dataclass(frozen=True, slots=True)
class Workspace:
    """Memory for sampling from `[vocab]` logits; nothing in it outlives a call."""

    peaks: torch.Tensor  # float32 [programs]: the largest logit of each block
    logits: torch.Tensor  # float32 [vocab], with the penalty
    weights: torch.Tensor  # int64 [vocab]
    nearness: torch.Tensor  # uint8 [vocab]: each logit's bin
    bins: torch.Tensor  # int32 [bins]: logits in each
    totals: torch.Tensor  # int64 [2]: candidates, the weight of all logits
    ids: torch.Tensor  # int32 [most], of the candidates; and what else is theirs:
    logit: torch.Tensor  # float32 [most]
    weight: torch.Tensor  # int64 [most]
    rank: torch.Tensor  # int32 [most]: how many of them come before
    above: torch.Tensor  # int64 [most]: the weight of those

    @classmethod
    def empty(cls, vocab: int, device: torch.device | str) -> Workspace:
        """1.7 MiB for R1's vocabulary."""
        programs, most = triton.cdiv(vocab, _BLOCK.value), _MOST.value
        sizes = (programs, vocab, vocab, vocab, _BINS.value, 2, *[most] * 5)
        f32, i32, i64 = torch.float32, torch.int32, torch.int64
        types = (f32, f32, i64, torch.uint8, i32, i64, i32, f32, i64, i32, i64)
        pairs = zip(sizes, types, strict=True)
        return cls(*(torch.empty(n, dtype=dtype, device=device) for n, dtype in pairs))


@triton.jit
def penalty_kernel(logits, seen, settings, out, peaks, bins, totals, VOCAB: tl.constexpr):
    """Seen tokens' logits are divided by the penalty above 0 and multiplied below; the largest of
    each block, or infinity; the sums that follow begin at 0.
    """
    block = tl.program_id(0)
    at = block * _BLOCK + tl.arange(0, _BLOCK)
    inside = at < VOCAB
    logit = tl.load(logits + at, mask=inside, other=float("-inf"))
    if seen is not None:
        penalty = tl.load(settings + _PENALTY).to(tl.float32) + tl.zeros_like(logit)
        heavier = tl.where(logit > 0, tl.div_rn(logit, penalty), logit * penalty)
        logit = tl.where(tl.load(seen + at, mask=inside, other=0) != 0, heavier, logit)
    tl.store(out + at, logit, mask=inside)
    broken = inside & ((tl.abs(logit) < float("inf")) == 0)
    tl.store(peaks + block, tl.max(tl.where(broken, float("inf"), logit), 0))
    if block == 0:
        tl.store(bins + tl.arange(0, _BINS), tl.zeros([_BINS], tl.int32))
        tl.store(totals + tl.arange(0, 2), tl.zeros([2], tl.int64))


@triton.jit
def weigh_kernel(
    logits, settings, peaks, weights, nearness, bins, totals,
    VOCAB: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The weight and bin of every logit, the sum of all weights and the count of every bin.

    At temperature 0 the largest weigh 1 and all others nothing.
    """
    program = tl.arange(0, BLOCK_PROGRAMS)
    peak = tl.max(tl.load(peaks + program, mask=program < PROGRAMS, other=float("-inf")), 0)
    at = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)
    inside = at < VOCAB
    logit = tl.load(logits + at, mask=inside, other=float("-inf"))
    below = peak.to(tl.float64) - logit.to(tl.float64)
    temperature = tl.load(settings + _TEMPERATURE) + tl.zeros_like(below)
    below = tl.where((temperature == 0) & (below > 0), float("inf"), below)
    below = below / tl.where(temperature == 0, 1.0, temperature)
    weight = (tl.exp(-below) * _ONE).to(tl.int64)
    near = tl.minimum(below * 2, _BINS - 1).to(tl.int32)
    tl.store(weights + at, weight, mask=inside)
    tl.store(nearness + at, near.to(tl.uint8), mask=inside)
    tl.atomic_add(totals + 1, tl.sum(tl.where(inside, weight, 0), 0))
    tl.atomic_add(bins + tl.arange(0, _BINS), tl.histogram(near, _BINS, mask=inside))


@triton.jit
def gather_kernel(logits, weights, nearness, bins, totals, ids, logit, weight, VOCAB: tl.constexpr):
    """Bring the candidates together, in any order: as many bins, the nearest first, as fit."""
    held = tl.cumsum(tl.load(bins + tl.arange(0, _BINS)), 0) <= _MOST
    limit = tl.sum(held.to(tl.int32), 0)
    at = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)
    inside = at < VOCAB
    taken = inside & (tl.load(nearness + at, mask=inside, other=255).to(tl.int32) < limit)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    place += tl.atomic_add(totals, tl.sum(taken.to(tl.int64), 0)).to(tl.int32)
    tl.store(ids + place, at, mask=taken)
    tl.store(logit + place, tl.load(logits + at, mask=taken, other=0.0), mask=taken)
    tl.store(weight + place, tl.load(weights + at, mask=taken, other=0), mask=taken)


@triton.jit
def rank_kernel(totals, ids, logit, weight, rank, above, OWN: tl.constexpr, OTHERS: tl.constexpr):
    """How many candidates come before each of OWN, and what they weigh."""
    n = tl.load(totals).to(tl.int32)
    if tl.program_id(0) * OWN >= n:
        return
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    own_logit = tl.load(logit + own, mask=own < n, other=0.0)[:, None]
    own_id = tl.load(ids + own, mask=own < n, other=0)[:, None]
    ahead, heavier = tl.zeros([OWN], tl.int32), tl.zeros([OWN], tl.int64)
    for first in range(0, n, OTHERS):
        at = first + tl.arange(0, OTHERS)
        inside = at < n
        other = tl.load(logit + at, mask=inside, other=float("-inf"))[None, :]
        other_id = tl.load(ids + at, mask=inside, other=0)[None, :]
        before = (other > own_logit) | ((other == own_logit) & (other_id < own_id))
        before = before & inside[None, :]
        ahead += tl.sum(before.to(tl.int32), 1)
        load = tl.load(weight + at, mask=inside, other=0)[None, :]
        heavier += tl.sum(tl.where(before, load, 0), 1)
    tl.store(rank + own, ahead, mask=own < n)
    tl.store(above + own, heavier, mask=own < n)


@triton.jit
def draw_kernel(
    settings, totals, ids, weight, rank, above, peaks, seen, token, answer,
    PROGRAMS: tl.constexpr, BLOCK_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The filters and the draw; see the module's docstring. Writes the token to `token` and
    `answer`, marks it as seen.
    """
    program = tl.arange(0, BLOCK_PROGRAMS)
    peak = tl.max(tl.load(peaks + program, mask=program < PROGRAMS, other=float("-inf")), 0)
    n, total = tl.load(totals).to(tl.int32), tl.load(totals + 1)
    top_k = tl.load(settings + _TOP_K).to(tl.int32)
    top_p, min_p = tl.load(settings + _TOP_P), tl.load(settings + _MIN_P)
    at = tl.arange(0, _MOST)
    inside = at < n
    own = tl.load(weight + at, mask=inside, other=0)
    place = tl.load(rank + at, mask=inside, other=_MOST)
    before = tl.load(above + at, mask=inside, other=0)
    here = tl.sum(own, 0)
    whole = here == total  # all others weigh nothing
    first_k = inside & (place < tl.where(top_k == 0, _MOST, top_k))
    few = (top_k > 0) & (top_k <= n)
    of_k = tl.where(few, tl.sum(tl.where(first_k, own, 0), 0), total).to(tl.float64)
    light = own.to(tl.float64) < min_p * _ONE
    kept = first_k & (before.to(tl.float64) < top_p * of_k) & (light == 0)
    # Is nothing but candidates kept? Or everything, and the draw falls among the candidates?
    cut = (top_p * of_k <= here.to(tl.float64)) | (tl.max((first_k & light).to(tl.int32), 0) > 0)
    closed = whole | few | ((top_k == 0) & cut)
    everything = (top_k == 0) & (top_p == 1) & (min_p == 0)
    mass = tl.where(closed, tl.sum(tl.where(kept, own, 0), 0), total)
    share = tl.load(settings + _UNIFORM) * mass.to(tl.float64)
    share = tl.where(tl.load(settings + _TEMPERATURE) == 0, 0.0, share)  # greedy: the first
    reached = kept & ((before + own).to(tl.float64) >= share)
    drawn = reached & (place == tl.min(tl.where(reached, place, _MOST), 0))
    settled = (closed | everything) & (tl.max(drawn.to(tl.int32), 0) > 0) & (peak < float("inf"))
    found = tl.sum(tl.where(drawn, tl.load(ids + at, mask=inside, other=0), 0), 0)
    why_not = tl.where(peak < float("inf"), _UNSETTLED, _NOT_FINITE)
    tl.store(token, tl.where(settled, found, why_not))
    tl.store(answer, tl.where(settled, found, why_not))
    if seen is not None:
        tl.store(seen + found, (settled | (tl.load(seen + found) != 0)).to(tl.uint8))


def sample(
    logits: torch.Tensor,
    settings: torch.Tensor,
    seen: torch.Tensor | None,
    work: Workspace,
    token: torch.Tensor,
    answer: torch.Tensor,
) -> None:
    """Write the drawn id, UNSETTLED or NOT_FINITE to `token` and `answer` int32 `[1]`, of which one
    may lie in pinned memory, and mark it in `seen`.

    `logits` float32 `[vocab]`; `settings` float64 `[6]` in the order of SETTINGS, read when the
    kernels run (a captured graph serves all); `seen` uint8 `[vocab]`, not 0 for the tokens that the
    penalty weighs down, or None for no penalty.
    """
    vocab, w = logits.shape[-1], work
    grid, shape = (triton.cdiv(vocab, _BLOCK.value),), {"VOCAB": vocab}
    launch(
        penalty_kernel, grid, logits, seen, settings, w.logits, w.peaks, w.bins, w.totals, **shape
    )  # fmt: skip
    blocks = {"PROGRAMS": grid[0], "BLOCK_PROGRAMS": _power(grid[0])}
    launch(
        weigh_kernel, grid, w.logits, settings, w.peaks, w.weights, w.nearness, w.bins, w.totals,
        **blocks, **shape,
    )  # fmt: skip
    launch(
        gather_kernel, grid, w.logits, w.weights, w.nearness, w.bins, w.totals, w.ids, w.logit,
        w.weight, **shape,
    )  # fmt: skip
    pairs = _PAIRS_ON_CPU if logits.is_cpu else _PAIRS
    each = (_MOST.value // pairs["OWN"],)
    launch(rank_kernel, each, w.totals, w.ids, w.logit, w.weight, w.rank, w.above, **pairs)
    launch(
        draw_kernel, (1,), settings, w.totals, w.ids, w.weight, w.rank, w.above, w.peaks, seen,
        token, answer, num_warps=8, **blocks,
    )  # fmt: skip


def _power(n: int) -> int:
    return triton.next_power_of_2(n)


def configurations(arch: int, sizes: Sizes = R1) -> Iterator[Configuration]:
    """With and without a penalty."""
    vocab = {"VOCAB": sizes.vocab_size}
    programs = triton.cdiv(sizes.vocab_size, _BLOCK.value)
    names = {
        **dict.fromkeys(("logits", "peaks", "out", "logit"), "*fp32"),
        **dict.fromkeys(("token", "answer", "bins", "ids", "rank"), "*i32"),
        **dict.fromkeys(("weights", "totals", "weight", "above"), "*i64"),
        **{"settings": "*fp64", "seen": "*u8", "nearness": "*u8"},
    }

    def of(kernel: Any, warps: int = 4, **constants: Any) -> Configuration:
        free = [name for name in kernel.arg_names if name not in constants]
        return Configuration(kernel, {name: names[name] for name in free}, constants, warps, 2)

    yield of(penalty_kernel, **vocab)
    yield of(penalty_kernel, seen=None, **vocab)
    blocks = {"PROGRAMS": programs, "BLOCK_PROGRAMS": _power(programs)}
    yield of(weigh_kernel, **blocks, **vocab)
    yield of(gather_kernel, **vocab)
    yield of(rank_kernel, **_PAIRS)
    yield of(draw_kernel, 8, **blocks)
    yield of(draw_kernel, 8, seen=None, **blocks)
