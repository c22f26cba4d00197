"""Each row of the command table, and what happens to lines that are no command."""

from __future__ import annotations

import pytest

from localr1.chat.commands import COMMANDS, Chat, dispatch
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from tests.chat.fake import SUM, FakeLLM


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def chat(said: list[str]) -> Chat:
    session = Session(FakeLLM([SUM]))
    return Chat(session, Saver(session, "fake-r1"), said.append, load=lambda name: session)


@pytest.mark.parametrize(
    ("line", "sent"),
    [("What is 1 + 1?", "What is 1 + 1?"), ("//help", "/help"), ("a /help", "a /help"), ("", "")],
)
def test_text_is_sent(chat: Chat, said: list[str], line: str, sent: str) -> None:
    assert dispatch(chat, line) == sent
    assert said == []


def test_help_lists_every_command(chat: Chat, said: list[str]) -> None:
    assert dispatch(chat, "/help") is None
    for command in COMMANDS:
        assert any(f"/{command.name}" in line and command.help in line for line in said)
    assert any("Ctrl-D" in line for line in said)


@pytest.mark.parametrize("name", ["/bye", "/exit", "/quit"])
def test_bye(chat: Chat, name: str) -> None:
    assert dispatch(chat, name) is None
    assert chat.leaving


def test_clear_forgets_the_turns(chat: Chat) -> None:
    list(chat.session.reply("sum"))
    dispatch(chat, "/clear")
    assert chat.session.transcript.messages == []


def test_think_prints_shows_and_hides(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/think")
    assert said.pop() == "there is no thought yet"
    list(chat.session.reply("sum"))
    dispatch(chat, "/think")
    assert said.pop() == "347 + 586\n= 933"
    dispatch(chat, "/think hide")
    assert chat.think == "hide"
    dispatch(chat, "/think  show")
    assert chat.think == "show"
    dispatch(chat, "/think \x1b[2Jloud")
    assert said.pop() == "/think takes show, fold or hide, not [2Jloud"


def test_stats(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/stats")
    assert said == ["there is no answer to count yet"]
    list(chat.session.reply("sum"))
    said.clear()
    dispatch(chat, "/stats")
    assert said[0] == "  prompt    1, 0 from the cache"
    assert said[2].startswith("  thinking  6, ")
    assert said[-1] == "  context   12 of 2k"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/hepl", "did you mean /help?"),
        ("/thnk show", "did you mean /think?"),
        ("/xyzzy", "/help lists the commands"),
    ],
)
def test_unknown_commands_are_not_sent(chat: Chat, said: list[str], line: str, hint: str) -> None:
    assert dispatch(chat, line) is None
    assert hint in said[0]
    assert chat.session.transcript.messages == []
