"""Each row of the command table, and what happens to lines that are no command."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from localr1.chat import archive
from localr1.chat.commands import BY_NAME, COMMANDS, Chat, dispatch
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from localr1.errors import LocalR1Error
from tests.chat.fake import SUM, FakeLLM


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def chat(said: list[str]) -> Chat:
    session = Session(FakeLLM([SUM]))
    return Chat(session, Saver(session, "fake-r1"), said.append, load=lambda name: session)


def ask(chat: Chat, question: str) -> None:
    list(chat.session.reply(chat.message(question), again=chat.again))
    chat.again = False
    chat.saver.save()


def questions(chat: Chat) -> list[str]:
    return [message.content for message in chat.session.transcript.messages[::2]]


def rendered(chat: Chat) -> list[tuple[str, str]]:
    """The messages of the last prompt."""
    return chat.session.llm.template.rendered[-1]


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
    assert max(len(line) for line in said) < 80


def test_every_expected_command_is_there() -> None:
    wanted = "help clear retry undo edit think set system stats context plan save load export copy"
    assert set(f"{wanted} model bye exit quit file budget".split()) == set(BY_NAME)


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_says_something_before_the_first_turn(
    chat: Chat, said: list[str], name: str
) -> None:
    assert dispatch(chat, f"/{name}") is None
    assert said or chat.leaving


@pytest.mark.parametrize("name", ["/bye", "/exit", "/quit"])
def test_bye(chat: Chat, name: str) -> None:
    assert dispatch(chat, name) is None
    assert chat.leaving


def test_clear_begins_a_new_conversation_and_keeps_the_old_one(chat: Chat, said: list[str]) -> None:
    chat.session.transcript.system = "Be brief."
    ask(chat, "one")
    old = chat.saver.name
    dispatch(chat, "/clear")
    assert old in said[-1]
    assert questions(chat) == []
    ask(chat, "two")
    assert rendered(chat) == [("system", "Be brief."), ("user", "two")]
    assert archive.load(old).transcript.messages[0].content == "one"
    assert len(archive.names()) == 2


def test_retry_asks_again_and_the_answer_takes_the_old_ones_place(chat: Chat) -> None:
    ask(chat, "one")
    ask(chat, "two")
    chat.session.params = type(chat.session.params)(seed=5)
    text = dispatch(chat, "/retry")
    assert text == "two" and chat.again
    ask(chat, text)
    assert questions(chat) == ["one", "two"]
    assert [text for role, text in rendered(chat) if role == "user"] == ["one", "two"]
    assert chat.session.params.seed == 6


def test_a_retry_that_fails_leaves_the_old_answer(chat: Chat) -> None:
    ask(chat, "one")
    reply = chat.session.retry()
    chat.session.stop()
    assert list(reply)[-1].finish_reason == "interrupted"
    assert chat.session.transcript.messages[-1].content == "It is **933**."


def test_undo(chat: Chat, said: list[str]) -> None:
    ask(chat, "one")
    ask(chat, "two \x1b[2J" + "x" * 100 + "\nmore")
    dispatch(chat, "/undo")
    assert said[-1].startswith("taken back: two [2Jxxx") and said[-1].endswith("…")
    assert questions(chat) == ["one"]
    assert len(archive.load(chat.saver.name).transcript.messages) == 2


def test_edit_puts_the_question_into_the_prompt(chat: Chat) -> None:
    ask(chat, "one")
    assert dispatch(chat, "/edit") is None
    assert (chat.draft, chat.again) == ("one", True)
    ask(chat, "one, better")
    assert questions(chat) == ["one, better"]


def test_files_go_with_the_next_message(chat: Chat, said: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b c.md"
    first.write_text("alpha\n")
    second.write_text("beta\x1b[2J")
    dispatch(chat, f"/file {first} '{second}'")
    assert said[0] == f"{first}: 1 token, sent with the next message"
    ask(chat, "what is this?")
    assert rendered(chat)[0][1] == (
        "[file name]: a.txt\n[file content begin]\nalpha\n[file content end]\n"
        "[file name]: b c.md\n[file content begin]\nbeta\x1b[2J\n[file content end]\n"
        "what is this?"
    )
    ask(chat, "and?")
    assert rendered(chat)[-1] == ("user", "and?")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: p.write_bytes(b"\x7fELF\0\0"), "no text file"),
        (lambda p: p.write_bytes(b"\xff\xfe\xfa" * 99), "no text file"),
    ],
)
def test_what_cannot_be_attached(chat: Chat, tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(LocalR1Error, match=words):
        dispatch(chat, f"/file {tmp_path / 'x'}")
    assert chat.attached == []
    with pytest.raises(LocalR1Error, match="quotation"):
        dispatch(chat, "/file 'a")


def test_think_prints_shows_folds_and_hides(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/think")
    assert said.pop() == "there is no thought yet"
    list(chat.session.reply("sum"))
    dispatch(chat, "/think")
    assert said.pop() == "347 + 586\n= 933"
    for mode in ("hide", "show", "fold"):
        dispatch(chat, f"/think  {mode}")
        assert chat.think == mode
    dispatch(chat, "/think \x1b[2Jloud")
    assert said.pop() == "/think takes show, fold or hide, not [2Jloud"


def test_budget(chat: Chat, said: list[str]) -> None:
    for words, limit, told in (
        ("", None, "thoughts may be as long as they like"),
        (" 200", 200, "thoughts end after 200 tokens"),
        (" 0", 0, "no thoughts"),
        (" off", None, "thoughts may be as long as they like"),
    ):
        dispatch(chat, f"/budget{words}")
        assert (chat.session.thinking.budget, said.pop()) == (limit, told)
    with pytest.raises(LocalR1Error):
        dispatch(chat, "/budget much")


def test_set(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/set")
    assert said[0] == "  temperature         0.6"
    dispatch(chat, "/set temperature 0")
    dispatch(chat, "/set max_tokens 20")
    assert (chat.session.params.temperature, chat.session.params.max_tokens) == (0, 20)
    dispatch(chat, "/set max_tokens off")
    assert chat.session.params.max_tokens is None
    dispatch(chat, "/set top_p")
    assert said.pop() == "top_p is 0.95"
    for wrong in ("top_p 2", "top_k many", "model x", "system x"):
        with pytest.raises(LocalR1Error):
            dispatch(chat, f"/set {wrong}")


def test_system(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/system Answer in French.")
    ask(chat, "one")
    assert rendered(chat)[0] == ("system", "Answer in French.")
    dispatch(chat, "/system")
    assert said.pop() == "Answer in French."
    dispatch(chat, "/system off")
    assert chat.session.transcript.system is None


def test_stats_and_context(chat: Chat, said: list[str]) -> None:
    dispatch(chat, "/stats")
    assert said == ["there is no answer to count yet"]
    list(chat.session.reply("sum"))
    said.clear()
    dispatch(chat, "/stats")
    assert said[0] == "  prompt    1, 0 from the cache"
    assert said[2].startswith("  thinking  6, ")
    assert said[-1] == "  context   12 of 2k"
    said.clear()
    dispatch(chat, "/context")
    assert said[-2] == "  used              2 of 2,048 tokens, 0 %"


def test_save_load_and_names(chat: Chat, said: list[str]) -> None:
    ask(chat, "one")
    dispatch(chat, "/save first talk")
    assert chat.saver.name == "first talk"
    assert archive.names() == ["first talk"]
    dispatch(chat, "/clear")
    ask(chat, "two")
    with pytest.raises(LocalR1Error, match="there is a conversation"):
        dispatch(chat, "/save first talk")
    dispatch(chat, "/load")
    assert "  first talk" in said
    dispatch(chat, "/load first talk")
    assert questions(chat) == ["one"]
    assert said[-1].startswith("first talk: 1 turn")
    ask(chat, "three")
    assert len(archive.load("first talk").transcript.messages) == 4
    with pytest.raises(LocalR1Error, match="no conversation is called"):
        dispatch(chat, "/load nothing")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".x", "a\x1b[2J", "x" * 80, "a "])
def test_names_cannot_leave_their_folder(chat: Chat, name: str) -> None:
    ask(chat, "one")
    before = sorted(archive.sessions_folder().parent.parent.rglob("*"))
    for action in (archive.session_file, archive.load, archive.remove, archive.cache_file):
        with pytest.raises(LocalR1Error, match="cannot be the name"):
            action(name)
    if name.strip() == name:
        with pytest.raises(LocalR1Error, match="cannot be the name"):
            dispatch(chat, f"/save {name}")
    assert sorted(archive.sessions_folder().parent.parent.rglob("*")) == before


def test_export(chat: Chat, said: list[str], tmp_path: Path) -> None:
    ask(chat, "one")
    dispatch(chat, f"/export {tmp_path / 'talk.md'}")
    text = (tmp_path / "talk.md").read_text()
    assert text == (
        "## You\n\none\n\n## Answer\n\n<details><summary>Thought</summary>\n\n"
        "347 + 586\n= 933\n\n</details>\n\nIt is **933**.\n"
    )
    with pytest.raises(LocalR1Error, match="exists"):
        dispatch(chat, f"/export {tmp_path / 'talk.md'}")
    with pytest.raises(LocalR1Error, match="cannot write"):
        dispatch(chat, f"/export {tmp_path / 'none' / 'talk.md'}")


def test_copy_asks_the_terminal(
    chat: Chat, said: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("localr1.chat.commands.keeping.can_move_cursor", lambda stream: True)
    ask(chat, "one")
    dispatch(chat, "/copy")
    sent = base64.b64encode(b"It is **933**.").decode()
    assert capsys.readouterr().out == f"\x1b]52;c;{sent}\x07"


def test_copy_uses_the_desktops_clipboard(
    chat: Chat, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "wl-copy"
    program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path / 'clipboard'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WAYLAND_DISPLAY", "w")
    ask(chat, "one")
    dispatch(chat, "/copy")
    assert (tmp_path / "clipboard").read_text() == "It is **933**."
    assert said[-1] == "copied"
    program.write_text("#!/bin/sh\nexit 1\n")
    dispatch(chat, "/copy")
    assert said[-1] == "there is no clipboard here"


def test_another_model_goes_on(chat: Chat, said: list[str]) -> None:
    ask(chat, "one")
    other = FakeLLM([SUM], name="other-r1")
    loaded: list[str] = []

    def load(name: str) -> Session:
        assert not hasattr(chat.session, "llm")  # the old one was let go first
        loaded.append(name)
        return Session(other)

    chat.load = load
    dispatch(chat, "/model tiny")
    assert (loaded, chat.session.llm) == (["tiny"], other)
    ask(chat, "two")
    assert [text for role, text in rendered(chat) if role == "user"] == ["one", "two"]
    assert archive.load(chat.saver.name).model == "tiny"


def test_a_model_that_does_not_load_gives_the_old_one_back(chat: Chat, said: list[str]) -> None:
    old = chat.session.llm

    def load(name: str) -> Session:
        if name == "tiny":
            raise LocalR1Error("no room")
        return Session(old)

    chat.load = load
    with pytest.raises(LocalR1Error, match="no room"):
        dispatch(chat, "/model tiny")
    assert chat.session.llm is old
    with pytest.raises(LocalR1Error, match="no model is called"):
        dispatch(chat, "/model no-such-model")


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
