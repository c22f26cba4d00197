"""/plan with a real model."""

from __future__ import annotations

import re

import localr1
from localr1.chat.commands import Chat, dispatch
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from tests.chat.fake import FakeLLM


def test_plan_tells_where_everything_lies() -> None:
    said: list[str] = []
    session = Session(localr1.load("tiny-r1", threads=1, device="cpu"))
    chat = Chat(session, Saver(session, "tiny-r1"), said.append, load=lambda name: session)
    dispatch(chat, "/plan")
    assert all(re.fullmatch(r"  RAM   [a-zA-Z ]{18} +\d+\.\d+ [GM]iB", line) for line in said[:-1])
    told = {line[8:26].strip(): line.split()[-2] for line in said[:-1]}
    assert told["routed experts"] == "9.6" and told["head"] == "0.2" and "not used" not in told
    assert said[-1] == "  context for 2,048 tokens"
    chat.session = Session(FakeLLM([[]]))
    dispatch(chat, "/plan")
    assert said[-1] == "this model was loaded without a plan"
