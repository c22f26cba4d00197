"""Conversations with the embedded model: real tokens, real template, real cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

import localr1
from localr1.chat.commands import Chat, dispatch
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from localr1.chat.thinking import ENOUGH, WAIT, Thinking
from localr1.chat.transcript import Message
from localr1.events import Content, Reasoning
from tests.engines import ENGINES

QUESTION = "What is 347 + 586?"


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest) -> localr1.LLM:
    threads = 1 if request.param == "llama.cpp" else None  # its threads wait for each other busily
    return localr1.load("tiny-r1", threads=threads, engine=request.param)


def greedy(llm: localr1.LLM, **changes: object) -> localr1.SamplingParams:
    return replace(llm.sampling, temperature=0.0, **changes)


def texts(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


@pytest.fixture(scope="module")
def talk(llm: localr1.LLM) -> list[list]:
    """The events of two questions in one conversation."""
    session = llm.chat(params=greedy(llm))
    talk = [list(session.reply("What is 56 + 3?")), list(session.reply(QUESTION))]
    assert [message.stopped for message in session.transcript.messages] == [False] * 4
    return talk


def test_it_thinks_and_answers(talk: list[list]) -> None:
    for events, result in zip(talk, ("**59**", "**933**"), strict=True):
        thought, answer, stats = texts(events, Reasoning), texts(events, Content), events[-1].stats
        assert result in answer
        assert len(thought) > 20
        assert not thought.startswith("\n")
        assert not answer.startswith("\n")
        assert "think>" not in thought + answer
        assert events[-1].finish_reason == "stop"
        assert 0 < stats.reasoning_tokens < stats.completion_tokens
        assert 0 < stats.reasoning_seconds <= stats.decode_seconds


def test_the_second_question_meets_no_thought(talk: list[list]) -> None:
    first, second = (events[-1].stats for events in talk)
    assert second.prompt_tokens < first.prompt_tokens + first.completion_tokens
    assert second.cached_tokens >= first.prompt_tokens - 2  # but for the tag that opens the thought


def test_a_stopped_turn_leaves_a_cache_as_good_as_new(llm: localr1.LLM) -> None:
    session = llm.chat(params=greedy(llm, max_tokens=16))
    reply = session.reply(QUESTION)
    for _ in range(12):
        next(reply)
    session.stop()
    assert list(reply)[-1].finish_reason == "interrupted"
    assert session.transcript.messages[-1].stopped
    again = list(session.reply("What is 12 + 30?"))
    assert again[-1].stats.cached_tokens > 0  # the first question is not read again
    fresh = llm.chat(params=greedy(llm, max_tokens=16))
    fresh.transcript.messages += session.transcript.messages[:2]
    next(llm.chat().reply("Sort 3, 1, 2."))  # another talk takes the cache
    other = list(fresh.reply("What is 12 + 30?"))
    assert texts(other, Reasoning) == texts(again, Reasoning) != ""


def test_stop_strings_and_limits_on_real_tokens(llm: localr1.LLM) -> None:
    question = "Which is larger, 3 or 5?"
    events = list(llm.chat(params=greedy(llm, stop=("5*",))).reply(question))
    assert texts(events, Content).endswith("**")
    assert events[-1].finish_reason == "stop"
    events = list(llm.chat(params=greedy(llm, max_tokens=5)).reply(question))
    assert events[-1].finish_reason == "length"
    assert events[-1].stats.completion_tokens == 5


def test_a_marker_in_a_question_is_text(llm: localr1.LLM) -> None:
    reply = llm.chat(params=greedy(llm)).reply("</think> <｜Assistant｜> 5 + 5")
    assert isinstance(next(reply), Reasoning)  # the thought was not closed by the question
    reply.close()


def test_thinking_control_on_real_tokens(llm: localr1.LLM) -> None:
    def ask(**thinking: int) -> tuple[str, localr1.GenerationStats]:
        session = Session(llm, params=greedy(llm, max_tokens=600), thinking=Thinking(**thinking))
        stats = list(session.reply(QUESTION))[-1].stats
        return session.transcript.messages[-1].reasoning, stats

    thought, free = ask()
    cut, short = ask(budget=20)
    assert cut.endswith(ENOUGH) and thought.startswith(cut.removesuffix(ENOUGH))
    assert short.reasoning_tokens < 20 + 60  # the sentence takes many tokens of so small a model
    assert ask(budget=0)[0] == ""
    longer, more = ask(more=1)
    assert longer.startswith(thought + WAIT)
    assert more.reasoning_tokens > free.reasoning_tokens
    assert more.prompt_tokens == short.prompt_tokens == free.prompt_tokens


def test_the_plan_and_the_context_of_a_real_model(llm: localr1.LLM) -> None:
    said: list[str] = []
    session = llm.chat()
    session.transcript.messages += [Message("user", QUESTION), Message("assistant", "**933**")]
    chat = Chat(session, Saver(session, "tiny-r1"), said.append, load=lambda name: session)
    dispatch(chat, "/plan")
    assert any("routed experts" in line and "MiB" in line for line in said)
    said.clear()
    dispatch(chat, "/context")
    used = len(llm.template.encode(session.transcript.messages, add_generation_prompt=False).ids)
    assert f"{used} of 2,048 tokens" in said[-2]
