"""Conversations with a real model that never thinks: all it writes is the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

import localr1
from localr1.chat.thinking import Thinking
from localr1.events import Content, Done, Reasoning
from tests.models.samples import smollm2


@pytest.fixture(scope="module")
def llm() -> localr1.LLM:
    return localr1.load(smollm2())


def test_limits_on_thinking_change_nothing(llm: localr1.LLM) -> None:
    answers = []
    for thinking in (Thinking(), Thinking(budget=0), Thinking(budget=1, more=2)):
        # From the cache only the last token would be read, alone: it may round another way.
        list(llm.engine.prefill([0]))
        session = llm.chat(params=replace(llm.sampling, temperature=0.0, max_tokens=16))
        session.thinking = thinking
        events = list(session.reply("Explain what a hash table is."))
        assert not any(isinstance(event, Reasoning) for event in events)
        answers.append("".join(event.text for event in events if isinstance(event, Content)))
        assert events[-1].stats.reasoning_tokens == 0
    assert "hash table" in answers[0]
    assert len(set(answers)) == 1


def test_the_next_turn_reads_only_the_question(llm: localr1.LLM) -> None:
    session = llm.chat(params=replace(llm.sampling, temperature=0.0, max_tokens=8))
    list(session.reply("Name a colour."))
    assert list(session.settle())
    settled = len(session.settled_ids())
    done = list(session.reply("And another?"))[-1]
    assert isinstance(done, Done)
    assert settled <= done.stats.cached_tokens < done.stats.prompt_tokens
