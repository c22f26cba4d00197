"""Budgets, words put into the model's mouth, and thoughts that go round in circles."""

from __future__ import annotations

import pytest

from localr1.chat.session import Session
from localr1.chat.thinking import ENOUGH, RepetitionDetector, Thinking
from localr1.errors import LocalR1Error
from localr1.events import Content, GenerationStats, Reasoning, Repetition
from tests.chat.fake import SUM, FakeLLM, Finish

ANSWER = ["Nine", " hundred"]


def text(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def read_text(llm: FakeLLM, call: int) -> str:
    """What the engine was given to read behind the prompt's one id."""
    return b"".join(llm.tokenizer.token_bytes(i) for i in llm.engine.read[call][1:]).decode()


def talk(scripts: list, **thinking: int) -> tuple[FakeLLM, list, Session]:
    llm = FakeLLM(scripts)
    session = Session(llm, thinking=Thinking(**thinking))
    return llm, list(session.reply("sum")), session


def test_a_budget_closes_the_thought_with_a_sentence() -> None:
    llm, events, session = talk([SUM, ANSWER], budget=3)
    assert text(events, Reasoning) == "347 + 586" + ENOUGH
    assert text(events, Content) == "Nine hundred"
    assert read_text(llm, 1) == "347 + 586" + ENOUGH + "</think>\n\n"
    assert llm.engine.closed == 1
    stats = events[-1].stats
    assert stats.reasoning_tokens == 4  # the sentence is one token of the fake's
    assert stats.completion_tokens == 3 + 3 + 2
    assert stats.prompt_tokens == 1
    assert session.transcript.messages[-1].reasoning.endswith(ENOUGH)
    assert not session.transcript.messages[-1].stopped


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    llm, events, _ = talk([SUM], budget=100)
    assert text(events, Reasoning) == "347 + 586\n= 933\n"
    assert len(llm.engine.read) == 1


def test_no_thought_at_all() -> None:
    llm, events, _ = talk([ANSWER], budget=0, more=3)
    assert read_text(llm, 0) == "\n</think>\n\n"
    assert text(events, Reasoning) == ""
    assert text(events, Content) == "Nine hundred"
    assert events[-1].stats.reasoning_tokens == 0


def test_no_thought_of_a_model_that_opens_it_itself() -> None:
    llm = FakeLLM([ANSWER], in_reasoning=False)
    events = list(Session(llm, thinking=Thinking(budget=0)).reply("sum"))
    assert read_text(llm, 0) == "<think>\n\n</think>\n\n"
    assert (text(events, Reasoning), text(events, Content)) == ("", "Nine hundred")
    llm = FakeLLM([ANSWER], in_reasoning=False)
    llm.template.reasons = False  # a model that does not think at all
    list(Session(llm, thinking=Thinking(budget=0)).reply("sum"))
    assert read_text(llm, 0) == ""


def test_a_model_that_never_thinks() -> None:
    for thinking in (Thinking(budget=0), Thinking(budget=1, more=2), Thinking()):
        llm = FakeLLM([["<think>", "is", " a tag, </think> too"]], in_reasoning=False)
        llm.template.reasons, llm.template.think_open_ids = False, [1, 2]
        events = list(Session(llm, thinking=thinking).reply("sum"))
        assert text(events, Content) == "<think>is a tag, </think> too"
        assert (text(events, Reasoning), read_text(llm, 0)) == ("", "")


def test_more_thought_where_the_model_wants_to_stop() -> None:
    llm, events, _ = talk([["a\n", "</think>", "early"], [", b", "</think>"], SUM], more=2)
    assert text(events, Reasoning) == "a\nWait, b\nWait347 + 586\n= 933\n"
    assert text(events, Content) == "It is **933**."
    assert [read_text(llm, call) for call in (1, 2)] == ["a\nWait", "a\nWait, b\nWait"]


def test_more_thought_when_the_model_ends_inside_it() -> None:
    _, events, _ = talk([["a", Finish("stop")], SUM], more=1)
    assert text(events, Reasoning) == "a\nWait347 + 586\n= 933\n"
    assert text(events, Content) == "It is **933**."


def test_a_closing_tag_of_several_tokens_is_taken_back() -> None:
    llm, events, _ = talk([["a", " <", "/th", "ink>\n"], SUM], more=1)
    assert read_text(llm, 1) == "a\nWait"
    assert text(events, Reasoning) == "a \nWait347 + 586\n= 933\n"


def test_the_budget_wins_over_more() -> None:
    _, events, _ = talk([["a", "b", "c"], ["answer"]], budget=2, more=5)
    assert text(events, Reasoning) == "ab" + ENOUGH
    assert text(events, Content) == "answer"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_answer_now(after: int) -> None:
    session = Session(FakeLLM([SUM, ANSWER]))
    reply = session.reply("sum")
    events = [next(reply) for _ in range(after)]
    session.answer_now()
    events += list(reply)
    assert text(events, Reasoning) == "".join(SUM[: max(after, 1)]) + ENOUGH
    assert text(events, Content) == "Nine hundred"


def test_answer_now_in_the_answer_does_nothing() -> None:
    session = Session(FakeLLM([SUM]))
    reply = session.reply("sum")
    events = [next(reply)]
    while not isinstance(events[-1], Content):
        events.append(next(reply))
    session.answer_now()
    assert text(events + list(reply), Content) == "It is **933**."


@pytest.mark.parametrize("limit", [4, 5, 6])
def test_limits_hold_over_all_parts_of_a_turn(limit: int) -> None:
    llm = FakeLLM([SUM, ANSWER])
    params = type(llm.sampling)(max_tokens=limit, seed=5)
    events = list(Session(llm, params=params, thinking=Thinking(budget=3)).reply("sum"))
    assert events[-1].finish_reason == "length"
    assert text(events, Content) == ""
    llm = FakeLLM([SUM, ANSWER])
    llm.engine.max_context = 6  # full when the thought is closed
    events = list(Session(llm, thinking=Thinking(budget=3)).reply("sum"))
    assert events[-1].finish_reason == "context"


def test_seconds_of_all_parts_add_up() -> None:
    _, events, session = talk([SUM, ANSWER], budget=3)
    stats = events[-1].stats
    assert stats.prefill_seconds == 0.01  # of reading the prompt; later parts count as writing
    assert stats.decode_seconds > 0.01
    assert session.stats == stats
    assert isinstance(stats, GenerationStats)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(LocalR1Error):
        Thinking(budget=-1)


def found(tokens: list[int]) -> list[tuple[int, int]]:
    detector = RepetitionDetector()
    hits = [(i, detector.push(token)) for i, token in enumerate(tokens)]
    return [(i, length) for i, length in hits if length is not None]


@pytest.mark.parametrize("length", [1, 7, 40, 300])
def test_a_repeated_passage_is_found_once(length: int) -> None:
    start = list(range(1000, 1500))
    passage = list(range(length))
    hits = found(start + passage * (1000 // length))
    assert [period for _, period in hits] == [length]
    assert hits[0][0] + 1 <= 500 + max(3 * length, 96) + 16
    again = found(start + passage * (1000 // length) + start + passage * (1000 // length))
    assert len(again) == 2


def test_text_without_repetition_passes() -> None:
    lines = [[7, 8, 9, i, 10] for i in range(300)]  # a list: alike, but never the same
    assert found([token for line in lines for token in line]) == []
    assert found([*range(50), *range(50)]) == []  # said twice is no loop


def test_a_turn_reports_repetition() -> None:
    _, events, _ = talk([["so ", "what? "] * 200 + ["</think>", "x"]])
    assert [e for e in events if isinstance(e, Repetition)] == [Repetition(2, True)]
