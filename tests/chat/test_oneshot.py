"""One question in a process of its own: streams, exit codes, signals, broken pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from localr1.chat import oneshot
from localr1.chat.session import Session
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
