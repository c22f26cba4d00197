"""chat, run and sessions as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localr1 import cli
from localr1.chat import archive, oneshot
from localr1.chat.transcript import Message, Transcript
from tests import test_cli
from tests.engines import ENGINES
from tests.test_cli import GREEDY, SUM, Cli, Result, assert_error

run_cli = test_cli.run_cli  # the fixture


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's commands run in each engine, as a user's settings would say."""
    monkeypatch.setenv("LOCALR1_ENGINE", request.param)
    monkeypatch.setenv("LOCALR1_THREADS", "1")  # llama.cpp's wait for each other, busily


@pytest.mark.usefixtures("engine")
def test_the_answer_is_all_of_stdout(run_cli: Cli) -> None:
    asked = run_cli("run", "tiny-r1", *GREEDY, SUM)
    assert asked.code == 0
    assert asked.out.count("\n") == 1 and "**933**" in asked.out
    assert "think" not in asked.out
    assert run_cli("run", "tiny-r1", *GREEDY, *SUM.split()) == asked
    assert run_cli("run", "tiny-r1", *GREEDY, stdin=SUM + "\n") == asked
    assert run_cli("chat", *GREEDY, stdin=SUM) == asked


def test_files_then_stdin_then_the_prompt(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts: list[str] = []
    monkeypatch.setattr(cli.talk, "_open", lambda flags: None)
    monkeypatch.setattr(oneshot, "run", lambda session, prompt, **flags: prompts.append(prompt))
    note = tmp_path / "note.txt"
    note.write_text("one\ntwo\n")
    asked = ("run", "tiny-r1", "--file", note, "Sum up:", "this")
    run_cli(*asked, stdin="A long\ntext.\n")
    attached = "[file name]: note.txt\n[file content begin]\none\ntwo\n[file content end]"
    assert prompts == [f"{attached}\n\nA long\ntext.\n\nSum up: this"]


@pytest.mark.usefixtures("engine")
def test_samples_votes_and_files(run_cli: Cli, tmp_path: Path) -> None:
    seeded = ("run", "tiny-r1", "--seed", "3")
    result = run_cli(*seeded, "--samples", "3", "--vote", SUM)
    assert (result.code, result.out, result.err) == (0, "933\n", "")
    path = tmp_path / "answer"
    assert run_cli(*seeded, "--output", path, "--no-think", SUM) == Result(0, "", "")
    assert path.read_text().endswith("\n")
    assert_error(run_cli(*seeded, "--output", tmp_path / "none/x", SUM), 2, "cannot write")
    assert_error(run_cli(*seeded, "--file", tmp_path / "none", SUM), 2, "cannot read")
    assert_error(run_cli(*seeded, "--think", "loud", SUM), 2, "loud")
    assert_error(run_cli("run", "tiny-r1", "--samples", "0", SUM), 2, "--samples")
    shown = run_cli("run", "tiny-r1", *GREEDY, "--think", "show", SUM)
    assert "carry" in shown.err and "carry" not in shown.out  # also into a pipe, if asked for


@pytest.mark.usefixtures("engine")
def test_thinking_flags(run_cli: Cli) -> None:
    def thought(*flags: str) -> int:
        out = run_cli("run", "tiny-r1", "--json", "--max-tokens", "400", *GREEDY, *flags, SUM).out
        return int(json.loads(out.splitlines()[-1])["stats"]["reasoning_tokens"])

    free = thought()
    assert thought("--no-think") == thought("--think-budget", "0") == 0
    assert 0 < thought("--think-budget", "20") < free < thought("--think-more", "1")


@pytest.mark.usefixtures("engine")
def test_sessions(run_cli: Cli) -> None:
    assert run_cli("sessions").out == "no conversation is kept yet\n"
    assert_error(run_cli("chat", "--resume", stdin="hi"), 2, "no conversation to resume")
    talk = Transcript([Message("user", "What is 1 + 1?"), Message("assistant", "**2**")])
    archive.save(archive.Saved("sums", "tiny-r1", talk))
    archive.session_file("broken").write_text("{")
    listed = {row["name"]: row for row in json.loads(run_cli("sessions", "--json").out)["sessions"]}
    assert listed["sums"]["turns"] == 1 and "damaged" in listed["broken"]["error"]
    assert "What is 1 + 1?" in run_cli("sessions").out
    assert_error(run_cli("chat", "--resume", "broken", stdin="hi"), 1, "damaged")
    resumed = run_cli("chat", "--resume", "sums", *GREEDY, stdin=SUM)
    assert resumed.code == 0 and "**933**" in resumed.out
    assert "sums: 1 turn" in resumed.err
    assert len(archive.load("sums").transcript.messages) == 4  # the next pipe goes on from here
    assert run_cli("sessions", "rm", "sums", "broken") == Result(0, "", "")
    assert_error(run_cli("sessions", "rm", "sums"), 2, "no conversation is called")
    assert_error(run_cli("sessions", "rm", "../../x"), 2, "cannot be the name")
    assert_error(run_cli("sessions", "purge"), 2, "purge")


@pytest.mark.usefixtures("engine")
def test_json_lines(run_cli: Cli) -> None:
    result = run_cli("run", "tiny-r1", "--json", *GREEDY, SUM)
    events = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0
    assert {event["type"] for event in events} == {"reasoning", "content", "done"}
    assert "933" in "".join(event["text"] for event in events if event["type"] == "content")
    assert events[-1]["finish_reason"] == "stop"


@pytest.mark.usefixtures("engine")
def test_flags_reach_the_model(run_cli: Cli) -> None:
    cut = run_cli("run", "tiny-r1", "--json", "--max-tokens", "5", *GREEDY, SUM)
    done = json.loads(cut.out.splitlines()[-1])
    assert (done["finish_reason"], done["stats"]["completion_tokens"]) == ("length", 5)
    assert run_cli("run", "tiny-r1", "--stop", "**", *GREEDY, SUM).out == "347 + 586 = \n"
    once, again = (run_cli("run", "tiny-r1", "--seed", "7", "--json", SUM).out for _ in range(2))
    assert _text(once) == _text(again)


def _text(lines: str) -> str:
    return "".join(json.loads(line).get("text", "") for line in lines.splitlines())


def test_names_in_errors_command_no_terminal(run_cli: Cli, tmp_path: Path) -> None:
    for args in (("--file", tmp_path / "\x1b]0;x\x07", "hi"), ("--think", "\x1b[2J", "hi")):
        result = run_cli("run", "tiny-r1", *args)
        assert result.code == 2 and "\x1b" not in result.err and "\x07" not in result.err
    result = run_cli("run", "./\x1b[2J\u202e.gguf", "hi")
    assert result.code == 3 and "\x1b" not in result.err and "\u202e" not in result.err
