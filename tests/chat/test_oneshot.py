"""One question in a process of its own: streams, exit codes, signals, broken pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localr1.chat import oneshot
from localr1.chat.session import Session
from localr1.engine.sampler import SamplingParams
from localr1.errors import CONTEXT_FULL, ContextFull, LocalR1Error
from tests.chat.child import SCRIPTS
from tests.chat.fake import FakeLLM


def child(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chat.child", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **options
    )


def test_stdout_is_the_answer_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert oneshot.run(Session(FakeLLM(SCRIPTS["reading"])), "sum") == 0
    assert capfd.readouterr() == ("It is **933**.\n", "")


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert oneshot.run(Session(FakeLLM(SCRIPTS["reading"])), "sum", json_lines=True) == 0
    out, err = capfd.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["type"] for event in events[:2]] == ["progress", "progress"]
    assert events[-1]["type"] == "done"
    assert err == ""


def test_a_full_context_is_exit_code_6(capfd: pytest.CaptureFixture[str]) -> None:
    assert oneshot.run(Session(FakeLLM(SCRIPTS["cut"])), "sum") == CONTEXT_FULL
    assert capfd.readouterr().out == "It is \n"
    with pytest.raises(ContextFull) as caught:
        oneshot.run(Session(FakeLLM(SCRIPTS["full"])), "sum")
    assert caught.value.code == CONTEXT_FULL


def test_a_blank_prompt_is_refused() -> None:
    with pytest.raises(LocalR1Error, match="empty"):
        oneshot.run(Session(FakeLLM(SCRIPTS["sum"])), " ")


def test_ctrl_c_keeps_what_was_written_and_exits_130() -> None:
    process = child("run", "long", "0.002")
    begin = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert begin == "word 0 wor"
    assert (begin + out).endswith("\n")
    assert "word 399" not in out
    assert err == ""
    assert process.returncode == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    process = child("run", "flood")
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == 141


def test_a_locale_without_the_letters_still_gets_an_answer() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = child("run", "chinese", env=environment)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("??\n", "", 0)


def answers(*results: str) -> FakeLLM:
    """A model that gives these answers, one after the other."""
    return FakeLLM([["</think>", f"It is **{result}**."] for result in results])


def test_a_file_gets_the_answer_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answer.md"
    path.write_text("old")
    assert oneshot.run(Session(answers("7")), "sum", output=path) == 0
    assert path.read_text() == "It is **7**.\n"
    assert capfd.readouterr() == ("", "")
    assert oneshot.run(Session(answers("8")), "sum", output=path, json_lines=True) == 0
    assert json.loads(path.read_text().splitlines()[-1])["type"] == "done"


def test_an_interrupt_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "answer.md"
    path.write_text("old")
    llm = answers("7")
    session = Session(llm)
    llm.engine.scripts = [["</think>", "It", KeyboardInterrupt()]]
    assert oneshot.run(session, "sum", output=path) == 130
    assert path.read_text() == "old"


def test_several_samples(capfd: pytest.CaptureFixture[str]) -> None:
    llm = answers("7", "8", "7")
    params = SamplingParams(seed=5)
    assert oneshot.run(Session(llm, params=params), "sum", samples=3) == 0
    assert capfd.readouterr().out == "It is **7**.\n\n---\n\nIt is **8**.\n\n---\n\nIt is **7**.\n"
    assert [params.seed for params in llm.engine.params] == [5, 6, 7]
    assert all(len(messages) == 1 for messages in llm.template.rendered)  # nobody sees the others


def test_a_vote(capfd: pytest.CaptureFixture[str]) -> None:
    assert oneshot.run(Session(answers("7", "8.0", "8")), "sum", samples=3, vote=True) == 0
    assert capfd.readouterr() == ("8.0\n", "")
    llm = answers("7", "8", "8")
    assert oneshot.run(Session(llm), "sum", samples=3, vote=True, json_lines=True) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1] == {"type": "vote", "answer": "8", "votes": 2, "answers": ["7", "8", "8"]}
    assert {event.get("sample") for event in events[:-1]} == {1, 2, 3}


def test_a_vote_without_results_fails() -> None:
    with pytest.raises(LocalR1Error, match="no sample has a result"):
        oneshot.run(Session(FakeLLM([["</think>", "who knows"]])), "sum", samples=2, vote=True)


def test_samples_at_temperature_0_are_refused() -> None:
    session = Session(answers("7"), params=SamplingParams(temperature=0))
    with pytest.raises(LocalR1Error, match="temperature 0"):
        oneshot.run(session, "sum", samples=2)


def test_nothing_that_a_terminal_obeys_reaches_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    assert oneshot.run(Session(FakeLLM(SCRIPTS["hostile"])), "hi", think="show") == 0
    out, err = capfd.readouterr()
    assert out == "[/foo] list[int][2J]52;c;aGk=\n"
    assert "\x1b" not in err and "\x07" not in err
