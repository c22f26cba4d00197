"""A conversation that is left and resumed with the real model: nothing is read again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import localr1
from localr1.chat import archive, snapshot
from localr1.chat.archive import Saved
from localr1.chat.saving import Saver
from localr1.chat.session import Session
from localr1.chat.transcript import Message, Transcript
from localr1.models.kv_cache import KVCache
from tests.engines import ENGINES

QUESTION = "What is 12 + 30?"


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest) -> localr1.LLM:
    return localr1.load("tiny-r1", threads=1, engine=request.param)


@pytest.fixture(scope="module")
def other(llm: localr1.LLM) -> localr1.LLM:
    """The same model in another process, so to speak."""
    return localr1.load("tiny-r1", threads=1, engine=llm.chosen.engine)


def session_of(llm: localr1.LLM, transcript: Transcript) -> Session:
    session = Session(llm, params=replace(llm.sampling, temperature=0.0, max_tokens=120))
    session.transcript = transcript
    return session


def long_talk(llm: localr1.LLM, tokens: int) -> Transcript:
    """Many small turns, `tokens` or a few more when rendered."""
    numbers, messages = random.Random(7), []
    while len(llm.template.encode(messages, add_generation_prompt=False).ids) < tokens:
        a, b = numbers.randrange(10, 999), numbers.randrange(10, 999)
        messages += [Message("user", f"What is {a} + {b}?")]
        messages += [Message("assistant", f"{a} + {b} = **{a + b}**", "a thought")]
    return Transcript(messages)


def run(work: Iterator[None]) -> int:
    return sum(1 for _ in work)


def empty(llm: localr1.LLM) -> None:
    llm.engine.cache.truncate(0)
    llm.engine.ids.clear()


@pytest.fixture
def talk(llm: localr1.LLM) -> Saver:
    """A settled talk of 1,500 tokens, on disk with its cache; all tests share its reading."""
    saver = Saver(session_of(llm, long_talk(llm, 1500)), "tiny-r1", Saved("talk", "tiny-r1"))
    saver.save()
    run(saver.work())
    return saver


def resume(llm: localr1.LLM) -> tuple[Session, str]:
    empty(llm)
    saved = archive.load("talk")
    session = session_of(llm, saved.transcript)
    return session, Saver(session, "tiny-r1", saved).restore_cache()


def ask(session: Session, question: str = QUESTION) -> tuple[Message, localr1.GenerationStats]:
    done = list(session.reply(question))[-1]
    return session.transcript.messages[-1], done.stats


def test_resuming_reads_the_new_question_only_and_goes_on_alike(
    talk: Saver, llm: localr1.LLM, other: localr1.LLM
) -> None:
    session, told = resume(other)
    assert told == ""
    said = len(llm.engine.ids)
    assert said >= 1500 and other.engine.ids == llm.engine.ids
    answer, stats = ask(session)
    assert stats.cached_tokens == said
    assert stats.prompt_tokens - said < 40  # the question and its markers
    unbroken = session_of(llm, long_talk(llm, 1500))
    assert ask(unbroken)[0] == answer
    assert answer.reasoning


def test_settling_makes_the_next_turn_start_at_once(llm: localr1.LLM) -> None:
    empty(llm)
    session = session_of(llm, Transcript())
    ask(session, "What is 5 + 5?")
    assert run(session.settle()) > 0
    settled = len(session.settled_ids())
    assert llm.engine.ids == session.settled_ids()
    answer, stats = ask(session)
    assert stats.cached_tokens == settled
    assert len(answer.reasoning) > 10


def test_settling_can_stop_anywhere(llm: localr1.LLM) -> None:
    transcript = long_talk(llm, 600)
    empty(llm)
    expected = ask(session_of(llm, Transcript(list(transcript.messages))))[0]
    session = session_of(llm, transcript)
    empty(llm)
    kept = []
    for steps in (1, 3, 6):
        work = session.settle()
        for _ in range(steps):
            next(work, None)
        work.close()
        assert llm.engine.ids == session.settled_ids()[: len(llm.engine.ids)]
        kept.append(len(llm.engine.ids))
    assert any(0 < length < len(session.settled_ids()) for length in kept)
    answer = ask(session)[0]
    assert answer.reasoning
    if llm.chosen.engine == "hybrid":  # so long a talk babbles, which float16 keys would change
        assert answer.content == expected.content  # chunks round differently, the sense is the same


def test_the_cache_file_grows_by_what_is_new(
    talk: Saver, llm: localr1.LLM, other: localr1.LLM
) -> None:
    rows = archive.cache_file("talk")
    before = rows.read_bytes()
    said = len(talk._session.settled_ids())
    if isinstance(llm.engine.cache, KVCache):  # llama.cpp's rows are its own business
        assert len(before) == said * llm.engine.cache.token_nbytes
    assert rows.stat().st_mode & 0o777 == 0o600
    assert run(talk.save_cache()) == 0  # nothing is new
    ask(talk._session)
    talk.save()
    run(talk.work())
    after = rows.read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    talk._session.transcript.undo()
    run(talk.work())
    session, told = resume(other)
    assert told == ""
    assert other.engine.ids == session.settled_ids()


@pytest.mark.parametrize("field", ["model", "template", "layout", "version"])
def test_a_cache_of_something_else_is_not_used(talk: Saver, other: localr1.LLM, field: str) -> None:
    index = archive.index_file(archive.cache_file("talk"))
    content = json.loads(index.read_text())
    content["mark"][field] = "other"
    index.write_text(json.dumps(content))
    assert resume(other)[1] == f"the saved cache is of another {field}"
    assert other.engine.ids == []
    run(talk.work())  # it is written anew
    assert resume(other)[1] == ""


def test_a_cache_of_the_other_engine_is_not_used(talk: Saver, llm: localr1.LLM) -> None:
    pytest.importorskip("llama_cpp")
    theirs = {"hybrid": "llama.cpp", "llama.cpp": "hybrid"}[llm.chosen.engine]
    another = localr1.load("tiny-r1", threads=1, engine=theirs)
    assert resume(another)[1] == "the saved cache is of another layout"
    assert another.engine.ids == []


def test_the_mark_tells_weights_apart(llm: localr1.LLM, tmp_path: Path) -> None:
    raw = bytearray(llm.path.read_bytes())
    copy = tmp_path / llm.path.name
    copy.write_bytes(raw)

    class Copied:
        path, template, engine = copy, llm.template, llm.engine

    assert snapshot.fingerprint(Copied) == snapshot.fingerprint(llm)
    raw[-1] ^= 1
    copy.write_bytes(raw)
    assert snapshot.fingerprint(Copied)["model"] != snapshot.fingerprint(llm)["model"]
    shards = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for shard in shards:
        shard.write_bytes(b"x")
    assert snapshot._model_files(shards[0]) == shards


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows, index: rows.write_bytes(rows.read_bytes()[:1000]),
        lambda rows, index: rows.write_bytes(b"\1" * rows.stat().st_size),
        lambda rows, index: rows.unlink(),
        lambda rows, index: index.write_text("{"),
        lambda rows, index: index.write_text("[]"),
        lambda rows, index: index.write_text('{"mark": {}, "ids": [1], "pieces": [[-1, 0, 0]]}'),
        lambda rows, index: index.unlink(),
    ],
)
def test_a_damaged_cache_is_told(talk: Saver, other: localr1.LLM, damage) -> None:
    rows = archive.cache_file("talk")
    damage(rows, archive.index_file(rows))
    session, told = resume(other)
    assert told
    assert other.engine.ids == session.settled_ids()[: len(other.engine.ids)]


def test_what_is_whole_of_a_damaged_cache_is_used(talk: Saver, other: localr1.LLM) -> None:
    rows = archive.cache_file("talk")
    raw = bytearray(rows.read_bytes())
    raw[-1] ^= 1
    rows.write_bytes(raw)
    session, told = resume(other)
    kept = len(other.engine.ids)
    assert kept >= 1024 and told == f"the saved cache is damaged behind token {kept:,}"
    assert ask(session)[1].cached_tokens == kept


def test_an_interrupted_save_leaves_the_last_good_state(talk: Saver, other: localr1.LLM) -> None:
    before = len(talk._session.settled_ids())
    ask(talk._session)
    talk.save()
    run(talk._session.settle())
    work = talk.save_cache()
    next(work)  # some rows are written, the index does not speak of them yet
    work.close()
    assert resume(other)[1] == ""
    assert len(other.engine.ids) == before


def test_a_cache_longer_than_the_context_is_not_used(talk: Saver, llm: localr1.LLM) -> None:
    short = localr1.load("tiny-r1", context=512, threads=1, engine=llm.chosen.engine)
    assert resume(short)[1] == "the saved cache is longer than the context"
