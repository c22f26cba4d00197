"""/plan with a real model."""

from __future__ import annotations

import re

import localr1
from localr1 import registry
from localr1.chat.commands import Chat, dispatch
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from offload.hardware import on_paper
from offload.planner import plan
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


def test_plan_tells_which_layers_the_cpu_runs() -> None:
    said: list[str] = []
    entry = registry.entries()["r1-distill-14b"]
    stock = inventory.from_rule(config_from_hf(entry.config), "Q4_K_M")
    llm = FakeLLM([[]])
    machine = on_paper(vram=3 << 30, ram=32 << 30)
    llm.engine.placement = plan(stock.weights, machine, 16_384, stock.demands)
    session = Session(llm)
    chat = Chat(session, Saver(session, "r1-distill-14b"), said.append, load=lambda name: session)
    dispatch(chat, "/plan")
    assert said[-2] == "  the CPU runs layers 0-41, the GPU the others"
