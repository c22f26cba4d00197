"""The GPU's side of the mailbox: what it writes, in which order, and that it never spins for long.

What kernels copy and decide runs in Triton's interpreter; loads and stores that other processors
see are PTX, so their order is read off the compiled code here and tried on a GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cpu_experts import ExpertBank, moe_forward
from cpu_experts import mailbox as protocol
from cpu_experts.mailbox import ABORTED, BAD_LAYER, DONE, ERROR, TICKET, Mailbox, MailboxError
from localr1.gpu import mailbox
from localr1.gpu.launch import launch
from localr1.gpu.mailbox import LATE, Handoff, fill, pinned, verdict
from localr1.gpu.norm import rms_norm
from tests.conftest import HAS_GPU
from tests.cpu_experts.blocks import random_tensor

HIDDEN, INTER, EXPERTS, TOP_K, MOST = 512, 256, 8, 3, 4
RNG = np.random.default_rng(0)


def make_bank() -> ExpertBank:
    sizes = ((EXPERTS, INTER, HIDDEN),) * 2 + ((EXPERTS, HIDDEN, INTER),)
    return ExpertBank(*(random_tensor("Q8_0", s, RNG) for s in sizes))


BANKS = (None, make_bank(), make_bank())
SIZE = Mailbox.size(HIDDEN, TOP_K, MOST)


def question(n_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, ids, weights."""
    ids = np.stack([RNG.permutation(EXPERTS)[:TOP_K] for _ in range(n_tokens)]).astype(np.int32)
    x = RNG.normal(0, 1, (n_tokens, HIDDEN)).astype(np.float32)
    weights = RNG.random(ids.shape).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(ids), torch.from_numpy(weights)


def answer(layer: int, asked: tuple[torch.Tensor, ...]) -> np.ndarray:
    bank = BANKS[layer]
    assert bank is not None
    x, ids, weights = (part.cpu().numpy() for part in asked)
    return moe_forward(x, ids, weights, bank)


@triton.jit
def fill_kernel(x, ids, weights, to_x, to_ids, to_weights, n_tokens):
    fill(x, ids, weights, to_x, to_ids, to_weights, n_tokens, 512, 3, 512, 4)


@triton.jit
def verdict_kernel(words, out):
    tl.store(out, verdict(tl.load(words), tl.load(words + 1), tl.load(words + 2)))


def failure(hand: Handoff) -> str | None:
    """Of all that was enqueued."""
    if hand.state.is_cuda:
        torch.cuda.synchronize()
    return hand.failure()


def memory(device: str) -> np.ndarray:
    """For a mailbox that `device` can write."""
    if device == "cuda":
        return pinned(SIZE)
    own = np.zeros(SIZE + 128, np.uint8)
    return own[-own.ctypes.data % 128 :][:SIZE]


@pytest.mark.parametrize("n_tokens", [1, MOST])
def test_what_is_filled_in_is_what_the_cpu_computes(device: str, n_tokens: int) -> None:
    box = Mailbox(BANKS, HIDDEN, TOP_K, MOST, memory(device))
    hand = Handoff(box, device)
    box.start()
    try:
        asked = tuple(part.to(device) for part in question(n_tokens))
        parts = (hand.x, hand.ids, hand.weights)
        launch(fill_kernel, (1,), *asked, *parts, n_tokens)
        assert failure(hand) is None
        hand.control[protocol.LAYER // 8], hand.control[protocol.TOKENS // 8] = 2, n_tokens
        hand.control[TICKET // 8] = 1
        np.testing.assert_array_equal(box.wait(1), answer(2, asked))
        np.testing.assert_array_equal(hand.out[:n_tokens], answer(2, asked))
    finally:
        box.stop()


@pytest.mark.parametrize(
    ("done", "abort", "error"), [(7, 0, 0), (6, 0, LATE), (6, 1, ABORTED), (7, 1, ABORTED)]
)
def test_verdict(device: str, done: int, abort: int, error: int) -> None:
    out = torch.full((1,), -9, device=device)
    words = torch.tensor([done, 7, abort], device=device)
    launch(verdict_kernel, (1,), words, out)
    assert int(out) == error


def test_reset_waits_for_a_late_answer(device: str) -> None:
    """And leaves the count at the last ticket, the error word clear and the status well."""
    box = Mailbox(BANKS, HIDDEN, TOP_K, MOST, memory(device))
    hand = Handoff(box, device)
    hand.control[TICKET // 8], hand.control[ERROR // 8], hand.state[1] = 3, LATE, LATE
    assert hand.failure() == "the experts did not answer in time"
    hand.control[DONE // 8] = 2
    with pytest.raises(MailboxError, match="still busy"):
        hand.reset(0.02)
    hand.control[DONE // 8] = 3
    hand.reset()
    assert hand.state.tolist() == [3, 0] and box.word(ERROR) == 0 and hand.failure() is None


# In a process of its own: in this one Triton interprets and does not compile.
COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from localr1.gpu.mailbox import configurations
found = {}
for arch in (80, 90, 120):
    for c in configurations(arch):
        names = c.fn.arg_names
        types = {name: c.signature.get(name, "constexpr") for name in names}
        given = c.complete(arch).constants
        constants = {(names.index(name),): value for name, value in given.items()}
        kernel = triton.compile(
            ASTSource(c.fn, types, constants),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": c.num_warps},
        )
        early = " early" if c.constants.get("EARLY") else ""
        found[f"{c.fn.__name__}{early} {arch}"] = kernel.asm["ptx"]
print(json.dumps(found))
"""
ACCESS = re.compile(
    r"(ld\.\S+|st\.\S+|bar\.sync|fence\S+|mov\.u64 \S+ %globaltimer|griddepcontrol\.\w+)"
)
HOLD, LET_IN = "griddepcontrol.wait", "griddepcontrol.launch_dependents"


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[str]]:
    """Memory accesses, barriers, fences and looks at the clock of each kernel, in PTX's order."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path]), "TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    ptx = json.loads(result.stdout)
    return {name: ACCESS.findall(re.sub("ld.param.*", "", text)) for name, text in ptx.items()}


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_the_ticket_is_released_behind_everything_else(
    compiled: dict[str, list[str]], arch: int
) -> None:
    *before, barrier, release = compiled[f"post_kernel {arch}"]
    assert (barrier, release) == ("bar.sync", "st.release.sys.global.b64")
    # ids, weights, x, layer, tokens, and behind a barrier of its own the ticket's number.
    assert len([access for access in before if access.startswith("st.global")]) >= 6
    assert before[-2:] == ["bar.sync", "st.global.b64"]
    assert not any("release" in access for access in before)


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("early", [False, True])
def test_the_wait_looks_at_memory_and_the_clock(
    compiled: dict[str, list[str]], arch: int, early: bool
) -> None:
    """An early one before it holds, but it holds."""
    look = ["ld.volatile.global.b64"] * 2
    name = f"wait_kernel{' early' * early} {arch}"
    accesses = ["clock" if "globaltimer" in a else a for a in compiled[name]]
    before, behind = [] if early else [HOLD], [HOLD] if early else []
    if arch < 90:
        assert HOLD not in accesses and LET_IN not in accesses
        before = behind = []
    else:
        assert accesses.pop(0) == LET_IN
    state, failed = look, ["st.global.b64"] * 2
    assert accesses == [
        *before, *state, "clock", *look, *look, "clock", "fence.acq_rel.sys;", *failed, *behind,
    ]  # fmt: skip


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """What Triton's interpreter cannot run: two processors that meet in memory."""
    mark = pytest.mark.gpu if HAS_GPU else pytest.mark.skip(reason="needs a GPU")
    return mark(test)


class Pinned:
    """A mailbox in pinned memory, running, and its GPU side."""

    def __init__(self) -> None:
        self.box = Mailbox(BANKS, HIDDEN, TOP_K, MOST, pinned(SIZE))
        self.hand = Handoff(self.box, "cuda")
        self.box.start()


@pytest.fixture
def running() -> Iterator[Pinned]:
    made = Pinned()
    yield made
    made.box.stop()


def on_gpu(n_tokens: int) -> tuple[torch.Tensor, ...]:
    return tuple(part.cuda() for part in question(n_tokens))


@on_a_gpu
def test_the_gpu_asks_and_the_cpu_answers(running: Pinned) -> None:
    for n in range(200):
        layer, asked = n % 2 + 1, on_gpu(n % MOST + 1)
        running.hand.post(layer, *asked)
        running.hand.wait()
        assert failure(running.hand) is None
        np.testing.assert_array_equal(running.hand.out[: len(asked[0])], answer(layer, asked))


@on_a_gpu
def test_a_captured_graph_is_replayed(running: Pinned) -> None:
    hand, asked = running.hand, on_gpu(1)
    outs = torch.empty(2, 1, HIDDEN, device="cuda")
    ones = torch.ones(HIDDEN, device="cuda")

    def token() -> None:
        outs.zero_()
        for layer, out in zip((1, 2), outs, strict=True):
            hand.post(layer, *asked)
            hand.wait()
            rms_norm(out, ones, 1e-6, add=hand.out[:1])

    token()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token()
    for n in range(300):
        for part, new in zip(asked, question(1), strict=True):
            part.copy_(new)
        if n % 50 == 49:
            running.box.rest()
            time.sleep(0.01)
            running.box.resume()
        graph.replay()
        assert failure(hand) is None
        for layer, out in zip((1, 2), outs, strict=True):
            np.testing.assert_array_equal(out.cpu().numpy(), answer(layer, asked))
    assert running.box.word(TICKET) == 2 + 600


@on_a_gpu
def test_no_answer_ends_by_itself_and_stays_failed(running: Pinned) -> None:
    hand, asked = running.hand, on_gpu(1)
    hand.post(1, *asked)
    hand.wait()
    torch.cuda.synchronize()
    running.box.stop()
    began = time.monotonic()
    for layer in (1, 2, 1):
        hand.post(layer, *asked)
        hand.wait(0.3)
    assert failure(hand) == mailbox.FAILURES[LATE]
    assert 0.25 < time.monotonic() - began < 0.6  # one wait, not three
    assert running.box.word(TICKET) == 2
    running.box.start()
    hand.reset()
    hand.post(2, *asked)
    hand.wait()
    assert failure(hand) is None
    np.testing.assert_array_equal(hand.out[:1], answer(2, asked))


@on_a_gpu
def test_an_abort_ends_the_wait(running: Pinned) -> None:
    hand, asked = running.hand, on_gpu(1)
    running.box.stop()
    hand.post(1, *asked)
    hand.wait(5.0)
    time.sleep(0.05)
    began = time.monotonic()
    running.box.abort()
    assert failure(hand) == mailbox.FAILURES[ABORTED]
    assert time.monotonic() - began < 0.2


@on_a_gpu
def test_the_cpu_s_refusal_is_the_status(running: Pinned) -> None:
    hand, asked = running.hand, on_gpu(1)
    hand.post(0, *asked)  # a dense layer
    hand.wait()
    assert failure(hand) == mailbox.FAILURES[BAD_LAYER]
    hand.reset()
    hand.post(1, *asked)
    hand.wait()
    assert failure(hand) is None
