"""A session's events, and a transcript that stays whole whatever happens."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from localr1.chat.session import Session
from localr1.chat.signals import SecondInterrupt, handle_keys
from localr1.chat.transcript import Message, Transcript
from localr1.errors import USAGE, ContextFull, LocalR1Error
from localr1.events import Content, Done, Progress, Reasoning
from tests.chat.fake import SUM, FakeLLM, Finish

READING = Progress("Reading the prompt", 1, 2, "tokens")


def text(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def assert_well_formed(session: Session) -> None:
    messages = session.transcript.messages
    Transcript(list(messages))  # checks that the roles alternate
    assert all(message.content for message in messages[::2])


def test_a_turn() -> None:
    session = Session(FakeLLM([[READING, *SUM]]))
    events = list(session.reply("What is 347 + 586?"))
    assert events[0] == READING
    assert text(events, Reasoning) == "347 + 586\n= 933\n"
    assert text(events, Content) == "It is **933**."
    done = events[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == "stop"
    assert done.stats.completion_tokens == len(SUM)
    assert done.stats.reasoning_tokens == SUM.index("</think>")
    assert 0 < done.stats.reasoning_seconds <= done.stats.decode_seconds
    assert session.stats == done.stats
    assert session.transcript.messages == [
        Message("user", "What is 347 + 586?"),
        Message("assistant", "It is **933**.", "347 + 586\n= 933\n"),
    ]


def test_old_thoughts_stay_out_of_the_prompt() -> None:
    llm = FakeLLM([SUM])
    session = Session(llm, system="Be brief.")
    for question in ("one", "two"):
        list(session.reply(question))
    assert llm.template.rendered[-1] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "It is **933**."),
        ("user", "two"),
    ]
    session.transcript.clear()
    list(session.reply("three"))
    assert llm.template.rendered[-1] == [("system", "Be brief."), ("user", "three")]


def test_characters_of_several_tokens() -> None:
    first, second = "思".encode()[:1], "思".encode()[1:]
    session = Session(FakeLLM([["</think>", first, second]]))
    assert text(list(session.reply("hi")), Content) == "思"


def test_stopping_inside_a_character_shows_no_half() -> None:
    session = Session(FakeLLM([["</think>", "a", "思".encode()[:1], "b"]]))
    reply = session.reply("hi")
    assert next(reply) == Content("a")
    session.stop()
    assert text(list(reply), Content) == ""


@pytest.mark.parametrize("stop", ["933", "**9", "3**."])
def test_stop_strings_end_the_answer_and_stay_unseen(stop: str) -> None:
    llm = FakeLLM([SUM], stop=(stop,))
    events = list(Session(llm).reply("sum"))
    assert text(events, Reasoning) == "347 + 586\n= 933\n"  # not applied to the thought
    assert text(events, Content) == "It is **933**."[: "It is **933**.".index(stop)]
    assert events[-1].finish_reason == "stop"
    assert llm.engine.closed == 1


def test_a_stop_string_that_stays_partial_is_shown_in_the_end() -> None:
    events = list(Session(FakeLLM([SUM], stop=(".and more",))).reply("sum"))
    assert text(events, Content) == "It is **933**."


@pytest.mark.parametrize("reason", ["length", "context"])
def test_a_cut_answer_is_kept_and_marked(reason: str) -> None:
    session = Session(FakeLLM([[*SUM[:9], Finish(reason)]]))
    assert list(session.reply("sum"))[-1].finish_reason == reason
    assert session.transcript.messages[-1] == Message(
        "assistant", "It is ", "347 + 586\n= 933\n", stopped=True
    )


@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_blank_text_is_refused(blank: str) -> None:
    session = Session(FakeLLM([SUM]))
    with pytest.raises(LocalR1Error, match="empty") as caught:
        session.reply(blank)
    assert caught.value.code == USAGE
    assert session.transcript.messages == []


def test_an_error_before_the_first_token_leaves_no_turn() -> None:
    session = Session(FakeLLM([SUM, [READING, ContextFull("no room")], SUM]))
    list(session.reply("one"))
    with pytest.raises(ContextFull):
        list(session.reply("two"))
    assert [message.content for message in session.transcript.messages[::2]] == ["one"]
    assert session.stats.completion_tokens == 0  # not the figures of the turn before
    list(session.reply("three"))
    assert_well_formed(session)


def test_an_error_later_keeps_what_was_written() -> None:
    session = Session(FakeLLM([[*SUM[:9], RuntimeError("a bug")]]))
    with pytest.raises(RuntimeError, match="a bug"):
        list(session.reply("sum"))
    assert session.transcript.messages[-1].content == "It is "
    assert session.transcript.messages[-1].stopped


@pytest.mark.parametrize("after", range(1, len(SUM) + 2))
@pytest.mark.parametrize("how", ["stop", "close"])
def test_ending_a_reply_at_each_event(after: int, how: str) -> None:
    llm = FakeLLM([[READING, *SUM]])
    session = Session(llm)
    reply, seen = session.reply("sum"), []
    for _ in range(after):
        seen.append(next(reply, None))
    if how == "close":
        reply.close()
    else:
        session.stop()
        rest = list(reply)
        assert all(isinstance(event, Done) for event in rest)
        assert [event.finish_reason for event in rest] == ["interrupted"] * len(rest)
    seen = [event for event in seen if event is not None and not isinstance(event, Done)]
    messages = session.transcript.messages
    assert_well_formed(session)
    if after == 1:  # only progress so far
        assert messages == []
        return
    assert messages[-1].content == text(seen, Content)
    assert messages[-1].reasoning == text(seen, Reasoning)
    list(session.reply("and now?"))
    assert_well_formed(session)


def test_stop_between_asking_and_the_first_event() -> None:
    session = Session(FakeLLM([SUM]))
    reply = session.reply("sum")
    session.stop()
    assert [event.finish_reason for event in reply] == ["interrupted"]
    assert session.transcript.messages == []
    assert text(list(session.reply("sum")), Content) == "It is **933**."  # the flag is gone


def test_an_abandoned_reply_is_closed_by_the_next() -> None:
    llm = FakeLLM([SUM])
    session = Session(llm)
    first = session.reply("one")
    next(first)
    list(session.reply("two"))
    assert list(first) == []
    assert [message.content for message in session.transcript.messages[::2]] == ["one", "two"]
    assert session.transcript.messages[1].stopped


class Presses(threading.Thread):
    """Presses Ctrl-C `times`, each a random while after the one before has arrived at `stop`."""

    def __init__(self, session: Session, times: int, seconds: float) -> None:
        super().__init__()
        self.session, self.times, self.seconds = session, times, seconds
        self.arrived = threading.Event()

    def stop(self) -> None:
        self.arrived.set()
        self.session.stop()

    def run(self) -> None:
        for _ in range(self.times):
            time.sleep(self.seconds)
            os.kill(os.getpid(), signal.SIGINT)
            self.arrived.wait()  # two signals under way at once would arrive as one

    def finish(self) -> None:
        """Wait for the end, awake now and then: a signal that comes just before a thread blocks
        without a limit is handled only when that thread wakes, which nothing else would do.
        """
        while self.is_alive():
            self.join(0.05)


def test_ctrl_c_at_random_moments_keeps_the_history_whole() -> None:
    moments = random.Random(1)
    session = Session(FakeLLM([[READING, *SUM]], delay=0.0005))
    for _ in range(30):
        presses = Presses(session, 1, moments.uniform(0, 0.01))
        with handle_keys(presses.stop, session.answer_now):
            presses.start()
            shown = list(session.reply("sum"))
            presses.finish()
        assert isinstance(shown[-1], Done)
        assert_well_formed(session)
        if text(shown, Reasoning):
            assert session.transcript.messages[-1].content == text(shown, Content)
            assert session.transcript.messages[-1].reasoning == text(shown, Reasoning)


def test_twice_ctrl_c_at_random_moments_raises_and_keeps_the_history_whole() -> None:
    moments = random.Random(2)
    for _ in range(20):
        session = Session(FakeLLM([["thought ", *SUM]], delay=0.005))
        presses = Presses(session, 2, moments.uniform(0, 0.02))
        with pytest.raises(SecondInterrupt), handle_keys(presses.stop, session.answer_now):
            presses.start()
            list(session.reply("sum"))
            time.sleep(10)  # the first press has ended the reply; the second ends this
        presses.finish()
        assert_well_formed(session)


def test_transcripts_must_alternate() -> None:
    with pytest.raises(ValueError, match="alternate"):
        Transcript([Message("user", "a"), Message("user", "b")])


def test_lone_surrogates_become_question_marks() -> None:
    session = Session(FakeLLM([SUM]))
    list(session.reply("caf\udce9"))
    assert session.transcript.messages[0].content == "caf?"
