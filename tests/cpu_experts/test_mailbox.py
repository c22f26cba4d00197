"""The mailbox: the same bits as moe_forward, and never a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from cpu_experts import ExpertBank, moe_forward, set_threads
from cpu_experts.mailbox import ABORT, ABORTED, DONE, ERROR, TICKET, Mailbox, MailboxError
from cpu_experts.moe import workspace_bytes
from cpu_experts.pool import SCRATCH_BYTES
from tests.cpu_experts.blocks import random_tensor

HIDDEN, INTER, EXPERTS, TOP_K, MOST = 512, 768, 8, 3, 4
RNG = np.random.default_rng(0)


def make_bank(formats: tuple[str, str, str], hidden: int = HIDDEN) -> ExpertBank:
    sizes = ((EXPERTS, INTER, hidden),) * 2 + ((EXPERTS, hidden, INTER),)
    return ExpertBank(*(random_tensor(f, s, RNG) for f, s in zip(formats, sizes, strict=True)))


BANKS = (
    None,  # a dense layer: not ours
    make_bank(("Q4_K", "Q4_K", "Q6_K")),
    make_bank(("Q8_0", "Q8_0", "Q8_0")),
    make_bank(("Q2_K", "Q4_K", "Q3_K")),
)


def question(tokens: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.stack([RNG.permutation(EXPERTS)[:TOP_K] for _ in range(tokens)]).astype(np.int32)
    weights = RNG.random(ids.shape).astype(np.float32)
    return ids, weights, RNG.normal(0, 1, (tokens, HIDDEN)).astype(np.float32)


@pytest.fixture(params=[1, 2, 5])
def mailbox(request: pytest.FixtureRequest) -> Iterator[Mailbox]:
    set_threads(request.param)
    box = Mailbox(BANKS, HIDDEN, TOP_K, MOST)
    box.start()
    yield box
    box.stop()
    set_threads(None)


@pytest.fixture
def one() -> Iterator[Mailbox]:
    box = Mailbox(BANKS, HIDDEN, TOP_K, MOST)
    box.start()
    yield box
    box.stop()


def test_it_gives_the_bits_of_moe_forward(mailbox: Mailbox) -> None:
    for token in range(60):
        for layer in (1, 2, 3):
            ids, weights, x = question(token % MOST + 1)
            if token % 5 == 0:
                ids[0, 0] = -1
            got = mailbox.wait(mailbox.submit(layer, ids, weights, x))
            np.testing.assert_array_equal(got, moe_forward(x, ids, weights, BANKS[layer]))
        if token % 10 == 9:  # between tokens
            mailbox.rest()
            time.sleep(0.01)
            mailbox.resume()
    assert mailbox.word(DONE) == mailbox.word(TICKET) == 180


def test_errors_are_words_and_the_next_ticket_is_served(one: Mailbox) -> None:
    ids, weights, x = question()
    for layer in (0, -1, len(BANKS)):
        with pytest.raises(MailboxError, match="no experts"):
            one.wait(one.submit(layer, ids, weights, x))
    with pytest.raises(MailboxError, match="beyond"):
        one.wait(one.submit(1, np.full_like(ids, EXPERTS), weights, x))
    for tokens in (0, MOST + 1):
        with pytest.raises(MailboxError, match="tokens"):
            one.wait(one.submit(1, *question(tokens) if tokens else (ids[:0], weights[:0], x[:0])))
    one.memory[TICKET : TICKET + 8].view(np.int64)[0] += 2  # as if one had been lost
    with pytest.raises(MailboxError, match="follow"):
        one.wait(one.word(TICKET))
    got = one.wait(one.submit(1, ids, weights, x))
    np.testing.assert_array_equal(got, moe_forward(x, ids, weights, BANKS[1]))


def test_abort_ends_it_and_start_begins_anew(one: Mailbox) -> None:
    ids, weights, x = question()
    one.wait(one.submit(1, ids, weights, x))
    one.abort()
    with pytest.raises(MailboxError, match="give up"):
        one.wait(one.submit(1, ids, weights, x))
    one.stop()
    assert one.word(ERROR) == ABORTED and one.word(ABORT)
    one.start()
    assert one.wait(one.submit(2, ids, weights, x)).any()


def test_no_answer_is_an_error_not_a_hang(one: Mailbox) -> None:
    ids, weights, x = question()
    one.stop()
    with pytest.raises(MailboxError, match="no answer"):
        one.wait(one.submit(1, ids, weights, x), seconds=0.05)


def test_stop_while_asleep_and_while_busy(one: Mailbox) -> None:
    one.rest()
    time.sleep(0.05)
    one.stop()
    one.stop()
    one.start()
    ids, weights, x = question(MOST)
    ticket = one.submit(1, ids, weights, x)
    one.stop()
    assert one.word(DONE) in (ticket, ticket - 1)


def test_at_rest_it_uses_no_cpu(one: Mailbox) -> None:
    ids, weights, x = question()
    one.wait(one.submit(1, ids, weights, x))
    one.rest()
    time.sleep(0.5)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.005
    one.resume()
    assert one.wait(one.submit(1, ids, weights, x)).any()


def test_two_mailboxes_do_not_share_the_pool(one: Mailbox) -> None:
    second = Mailbox(BANKS, HIDDEN, TOP_K, MOST)
    with pytest.raises(MailboxError, match="running already"):
        second.start()
    one.stop()
    second.start()
    second.stop()


def test_python_may_compute_meanwhile_and_change_the_pool(one: Mailbox) -> None:
    ids, weights, x = question()
    wanted = moe_forward(x, ids, weights, BANKS[1])
    same: list[bool] = []

    def compute() -> None:
        same.extend(
            np.array_equal(moe_forward(x, ids, weights, BANKS[1]), wanted) for _ in range(100)
        )

    caller = threading.Thread(target=compute)
    caller.start()
    for _ in range(50):
        np.testing.assert_array_equal(one.wait(one.submit(1, ids, weights, x)), wanted)
    caller.join()
    assert all(same)
    set_threads(3)  # the pool that the mailbox uses is stopped, not taken away
    np.testing.assert_array_equal(one.wait(one.submit(1, ids, weights, x)), wanted)
    set_threads(None)


def test_memory_of_the_caller_and_refusals() -> None:
    memory = np.ones(Mailbox.size(HIDDEN, TOP_K, MOST) + 256, dtype=np.uint8)
    aligned = memory[-memory.ctypes.data % 128 :]
    box = Mailbox(BANKS, HIDDEN, TOP_K, MOST, aligned)
    assert box.address == aligned.ctypes.data
    with pytest.raises(MailboxError, match="multiple of 128"):
        Mailbox(BANKS, HIDDEN, TOP_K, MOST, aligned[8:])
    with pytest.raises(MailboxError, match="multiple of 128"):
        Mailbox(BANKS, HIDDEN, TOP_K, MOST, aligned[:1024])
    with pytest.raises(MailboxError, match="layer 0 has hidden size 256"):
        Mailbox([make_bank(("Q8_0",) * 3, hidden=256)], HIDDEN, TOP_K, MOST)


def test_the_interpreter_ends_with_a_mailbox_running() -> None:
    program = (
        "from tests.cpu_experts.test_mailbox import *\n"
        "box = Mailbox(BANKS, HIDDEN, TOP_K, MOST)\n"
        "box.start()\n"
        "box.wait(box.submit(1, *question()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_its_memory_serves_every_number_of_tokens() -> None:
    """Few tokens are one job, which keeps its products: 8 pairs may need more than 64."""
    bank = make_bank(("Q4_K", "Q4_K", "Q6_K"), hidden=2048)
    box = Mailbox((bank,), 2048, 8, 8)
    room = box._work.nbytes - SCRATCH_BYTES
    assert max(workspace_bytes(bank, n, 8 * n, True) for n in range(1, 9)) <= room


def test_a_warm_up_for_it_leaves_nothing_to_compile(tmp_path) -> None:
    """From its start to the first answer."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cpu_experts import warmup\n"
        "from cpu_experts.mailbox import Mailbox\n"
        "from cpu_experts.warmup import MAILBOX\n"
        "from tests.cpu_experts.test_mailbox import BANKS, HIDDEN, TOP_K, question\n"
        "for _ in warmup(['Q8_0'], [MAILBOX]): pass\n"
        "before = sorted(Path(sys.argv[1]).rglob('*.nbc'))\n"
        "box = Mailbox(BANKS[2:3], HIDDEN, TOP_K, 1)\n"
        "box.start()\n"
        "box.wait(box.submit(0, *question()))\n"
        "box.stop()\n"
        "assert before and sorted(Path(sys.argv[1]).rglob('*.nbc')) == before\n"
    )
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
