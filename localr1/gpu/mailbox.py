"""The GPU's side of the experts' mailbox: post a layer's question, wait for its answer.

The protocol is cpu_experts/mailbox.py's. `post` is one program: it writes activations, ids and
weights to pinned memory that the CPU reads, and then, with a release that covers the whole system,
the ticket. `wait` is one warp that looks at DONE and ABORT until either speaks or the time is over,
so that no GPU spins longer than the limit. Both are captured into a graph: the ticket's number
lives in device memory and is counted there.

What fails stands in the mailbox's ERROR word, which the host reads behind the token and then throws
the token away: a number of `cpu_experts.mailbox.ERRORS`, or `LATE` for a wait that ran out. The GPU
does not look there, which would be a read through PCIe in each layer. Where it gave up waiting, it
keeps that as a status, and posts and waits of the same graph do nothing from then on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl

from cpu_experts import mailbox as protocol
from cpu_experts.mailbox import DONE, ERROR, TICKET, Mailbox, MailboxError
from localr1.gpu import pdl
from localr1.gpu.launch import Configuration, launch
from localr1.gpu.sizes import R1, AnySizes, experts_per_token

LATE = 6
FAILURES = {**protocol.ERRORS, LATE: "the experts did not answer in time"}

# Words of the protocol as indices of int64.
_TICKET, _DONE, _ABORT, _ERROR = (
    tl.constexpr(word // 8) for word in (TICKET, DONE, protocol.ABORT, ERROR)
)
_LAYER, _TOKENS = (tl.constexpr(word // 8) for word in (protocol.LAYER, protocol.TOKENS))
_NUMBER, _STATUS = tl.constexpr(0), tl.constexpr(1)  # words of `state`: the ticket, has it failed
_ABORTED, _LATE = tl.constexpr(protocol.ABORTED), tl.constexpr(LATE)


@triton.jit
def fill(
    x, ids, weights, to_x, to_ids, to_weights, n_tokens, HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Copy a question: x [n_tokens, HIDDEN], ids and weights [n_tokens, TOP_K].

    A token's values are all loaded before the first is stored: the latency is paid once.
    """
    column, slot = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    inside, there = column < HIDDEN, slot < TOP_K
    for token in range(0, n_tokens):
        at, choice = token * HIDDEN + column, token * TOP_K + slot
        values = tl.load(x + at, mask=inside)
        expert = tl.load(ids + choice, mask=there)
        weight = tl.load(weights + choice, mask=there)
        tl.store(to_ids + choice, expert, mask=there)
        tl.store(to_weights + choice, weight, mask=there)
        tl.store(to_x + at, values, mask=inside)


@triton.jit
def verdict(done, ticket, abort):
    """The error of a wait that ended with these words, or 0."""
    return tl.where(abort != 0, _ABORTED, tl.where(done == ticket, 0, _LATE))


@triton.jit
def publish(word, value):
    """The first thread stores `value` so that whoever sees it sees all that this program wrote.

    The barrier brings the other threads' stores before the first thread's release.
    """
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first st.release.sys.global.b64 [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,l,~{memory}",
        [word, value],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def acquire():
    """Loads behind this see what was written before the words that loads before it saw.

    Every warp that does it takes a microsecond or two more, so `wait` is one.
    """
    tl.inline_asm_elementwise(
        "fence.acq_rel.sys; mov.u32 $0, 0;", "=r,~{memory}", [], dtype=tl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip


@triton.jit
def nanoseconds():
    """The GPU's clock."""
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l,~{memory}", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def post_kernel(
    control, state, x, ids, weights, to_x, to_ids, to_weights, layer, n_tokens,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr = False,
):  # fmt: skip
    """Write a question and its ticket, unless something has failed before."""
    pdl.relay(PDL)
    if tl.load(state + _STATUS) == 0:
        fill(
            x, ids, weights, to_x, to_ids, to_weights, n_tokens, HIDDEN, TOP_K, BLOCK, BLOCK_K
        )  # fmt: skip
        tl.store(control + _LAYER, layer)
        tl.store(control + _TOKENS, n_tokens)
        ticket = tl.load(state + _NUMBER) + 1
        tl.debug_barrier()  # every thread has read the number before it changes
        tl.store(state + _NUMBER, ticket)
        publish(control + _TICKET, ticket)


@triton.jit
def wait_kernel(control, state, limit, EARLY: tl.constexpr, PDL: tl.constexpr = False):
    """Return when the ticket is answered, the mailbox aborted or `limit` nanoseconds have gone.

    EARLY where other kernels lie between the question and this one: the last of them lets this one
    in when the question's has ended, so it looks while that one computes.
    """
    pdl.let_in(PDL)
    if not EARLY:
        pdl.hold(PDL)
    if tl.load(state + _STATUS, volatile=True) == 0:
        ticket = tl.load(state + _NUMBER, volatile=True)
        began = nanoseconds()
        done = tl.load(control + _DONE, volatile=True)
        abort = tl.load(control + _ABORT, volatile=True)
        spent = began - began
        while (done != ticket) & (abort == 0) & (spent < limit):
            done = tl.load(control + _DONE, volatile=True)
            abort = tl.load(control + _ABORT, volatile=True)
            spent = nanoseconds() - began
        acquire()
        error = verdict(done, ticket, abort)
        if error != 0:
            tl.store(state + _STATUS, error)
            tl.store(control + _ERROR, error)
    if EARLY:
        pdl.hold(PDL)


class Handoff:
    """A `Mailbox` seen from the GPU; its memory must be `pinned`.

    `x`, `ids`, `weights` and `out` are that memory, for `max_tokens` tokens. After `wait`, norm.py
    adds `out`, the answer, from where it lies.
    """

    def __init__(self, box: Mailbox, device: torch.device | str) -> None:
        memory = torch.from_numpy(box.memory)
        ids, weights, x, out = box.offsets
        choices, values = box.top_k * box.max_tokens, box.hidden * box.max_tokens
        self.box, self.control = box, memory[:ids].view(torch.int64)

        def part(offset: int, n: int, dtype: torch.dtype) -> torch.Tensor:
            return memory[offset : offset + 4 * n].view(dtype)

        self.ids = part(ids, choices, torch.int32).view(box.max_tokens, box.top_k)
        self.weights = part(weights, choices, torch.float32).view(box.max_tokens, box.top_k)
        self.x = part(x, values, torch.float32).view(box.max_tokens, box.hidden)
        self.out = part(out, values, torch.float32).view(box.max_tokens, box.hidden)
        self.state = torch.zeros(2, dtype=torch.int64, device=device)

    def post(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Ask for the experts of `layer`: x float32 `[T, hidden]`, ids int32 and weights float32
        `[T, top_k]`, contiguous.
        """
        n_tokens = len(x)
        assert n_tokens <= self.box.max_tokens
        launch(
            post_kernel, (1,), self.control, self.state, x, ids, weights, self.x, self.ids,
            self.weights, layer, n_tokens, num_warps=8,
            **_constants(self.box.hidden, self.box.top_k),
        )  # fmt: skip

    def wait(self, seconds: float = 1.0, early: bool = False) -> None:
        """Hold the stream until the answer is there, at most so long; `early` if products with
        weights have been enqueued since the question.
        """
        limit = int(seconds * 1e9)
        launch(wait_kernel, (1,), self.control, self.state, limit, num_warps=1, EARLY=early)

    def failure(self) -> str | None:
        """What went wrong since the last `reset`, in words, once the GPU is through."""
        error = self.box.word(ERROR)
        return FAILURES[error] if error else None

    def reset(self, seconds: float = 1.0) -> None:
        """Forget a failure. Nothing of the graph may be running.

        Waits until the CPU is through with the last ticket: a late answer must not be taken for
        the next one's. MailboxError where that takes longer (`stop` and `start` the mailbox then,
        as after an abort).
        """
        box, end = self.box, time.monotonic() + seconds
        while box.word(DONE) != box.word(TICKET):
            if time.monotonic() > end:
                raise MailboxError(f"the experts are still busy after {seconds:g} s")
            time.sleep(0.001)
        box.memory[ERROR : ERROR + 8] = 0
        self.state.copy_(torch.tensor([box.word(TICKET), 0]))


def pinned(size: int) -> np.ndarray:
    """Page-locked host memory, which has one address on both sides: uint8 `[size]`, zeros."""
    return torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()


def _constants(hidden: int, top_k: int) -> dict[str, int]:
    blocks = {"BLOCK": triton.next_power_of_2(hidden), "BLOCK_K": triton.next_power_of_2(top_k)}
    return {"HIDDEN": hidden, "TOP_K": top_k} | blocks


def configurations(arch: int, sizes: AnySizes = R1) -> Iterator[Configuration]:
    """Posting and waiting."""
    post = {
        **{"control": "*i64", "state": "*i64", "x": "*fp32", "ids": "*i32", "weights": "*fp32"},
        **{"to_x": "*fp32", "to_ids": "*i32", "to_weights": "*fp32"},
        **{"layer": "i32", "n_tokens": "i32"},
    }
    constants = _constants(sizes.hidden_size, experts_per_token(sizes))
    yield Configuration(post_kernel, post, constants, 8, 2)
    wait = {"control": "*i64", "state": "*i64", "limit": "i32"}
    for early in (False, True):
        yield Configuration(wait_kernel, wait, {"EARLY": early}, 1, 2)
