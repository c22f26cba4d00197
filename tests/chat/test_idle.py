"""Work while the user types: it stops when asked, and its errors are not lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from localr1.chat.idle import Idle
from localr1.chat.session import Session
from localr1.chat.transcript import Message
from localr1.models.template import ChatTemplate
from localr1.models.tokenizer import Tokenizer
from tests.chat.fake import SUM, FakeLLM
from tests.models.samples import TINY


def steps(done: list[int], seconds: float = 0.001) -> Iterator[None]:
    try:
        for n in range(10_000):
            time.sleep(seconds)
            done.append(n)
            yield
    finally:
        done.append(-1)


def test_it_stops_at_the_next_step_and_closes_the_work() -> None:
    idle, done = Idle(), []
    idle.start(steps(done))
    time.sleep(0.05)
    idle.stop()
    assert 1 < len(done) < 1000
    assert done[-1] == -1
    seen = len(done)
    time.sleep(0.02)
    assert len(done) == seen


def test_it_can_start_again_and_runs_in_one_thread() -> None:
    idle, threads = Idle(), set()

    def note() -> Iterator[None]:
        threads.add(threading.get_ident())
        yield

    for _ in range(3):
        idle.start(note())
        time.sleep(0.01)
    idle.stop()
    idle.stop()
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_error_is_raised_by_stop() -> None:
    def fail() -> Iterator[None]:
        yield
        raise OSError("disk full")

    idle = Idle()
    idle.start(fail())
    time.sleep(0.02)
    with pytest.raises(OSError, match="disk full"):
        idle.stop()
    idle.stop()


def test_settling_reads_what_the_next_prompt_begins_with() -> None:
    llm = FakeLLM([SUM])
    session = Session(llm)
    assert list(session.settle()) == []
    list(session.reply("sum"))
    assert session.settled_ids() == [0, 1]  # the fake's template: an id per message
    assert len(list(session.settle())) == 2
    llm.engine.cached = 2
    assert list(session.settle()) == []
    llm.engine.cached, llm.engine.max_context = 0, 2
    assert list(session.settle()) == []  # no room: the next turn will say so


def test_a_template_that_writes_the_last_answer_in_its_own_way() -> None:
    source = (
        "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}<think></think>"
        "{% endif %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    )
    llm = FakeLLM([SUM])
    tokenizer = Tokenizer.from_folder(TINY)
    llm.template = ChatTemplate(source, tokenizer)
    session = Session(llm)
    session.transcript.add_turn(Message("user", "sum"), Message("assistant", "933"))
    assert tokenizer.decode(session.settled_ids()) == "user: sum\nassistant: 933\nuser:"
