"""The loop: reuse of the cache, limits, interrupts, and the same text as transformers writes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import localr1
from localr1.chat.transcript import Message
from localr1.errors import ContextFull, LocalR1Error
from localr1.events import Progress
from tests import toy
from tests.engines import ENGINES

PROBLEMS = Path(__file__).parents[1] / "data" / "eval.jsonl"
GREEDY = localr1.SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest) -> localr1.LLM:
    return load(request.param)


def load(engine: str, context: int = 256) -> localr1.LLM:
    """tiny-r1; llama.cpp's threads wait for each other busily, so one is quick on any machine."""
    threads = 1 if engine == "llama.cpp" else None
    return localr1.load("tiny-r1", context=context, threads=threads, engine=engine)


def another(llm: localr1.LLM, context: int = 256) -> localr1.LLM:
    """The same model in the same engine, with nothing in its cache."""
    return load(llm.chosen.engine, context)


def prompt(llm: localr1.LLM, text: str) -> list[int]:
    return llm.template.encode([Message("user", text)]).ids


def test_a_prompt_that_begins_alike_is_read_from_where_it_differs(llm: localr1.LLM):
    first, second = prompt(llm, "What is 12 + 30?"), prompt(llm, "What is 12 + 31?")
    fresh = list(another(llm).generate(second, GREEDY))
    list(llm.generate(first, GREEDY))
    assert list(llm.generate(second, GREEDY)) == fresh
    common = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert llm.engine.stats.cached_tokens == common
    list(llm.generate(second, GREEDY))
    assert llm.engine.stats.cached_tokens == len(second) - 1


def test_logits_do_not_depend_on_what_was_read_before(llm: localr1.LLM):
    ids = prompt(llm, "Compare 12 and 21.")
    fresh = llm.logits(ids)
    list(llm.generate(prompt(llm, "What is 5 + 5?"), GREEDY))
    assert (llm.logits(ids) == fresh).all()


def test_limits_say_why_the_text_ended(llm: localr1.LLM):
    ids = prompt(llm, "What is 347 + 586?")
    assert len(list(llm.generate(ids, GREEDY))) == 24
    assert llm.engine.finish_reason == "length"
    short = another(llm, len(ids) + 5)
    unlimited = localr1.SamplingParams(temperature=0)
    assert len(list(short.generate(ids, unlimited))) == 6  # the last one needs no room
    assert short.engine.finish_reason == "context"
    list(llm.generate(prompt(llm, "Hello!"), unlimited))
    assert llm.engine.finish_reason == "stop"


def test_a_full_context_is_refused_before_any_work(llm: localr1.LLM):
    with pytest.raises(ContextFull) as caught:
        list(llm.generate([5] * 256))
    assert caught.value.code == 6
    assert "256" in str(caught.value)


@pytest.mark.parametrize("ids", [[], [768], [-1]])
def test_ids_that_are_none_are_refused(llm: localr1.LLM, ids: list[int]):
    with pytest.raises(LocalR1Error):
        list(llm.generate(ids))


def test_closing_the_stream_anywhere_leaves_a_good_cache(llm: localr1.LLM):
    ids = prompt(llm, "Sort 5, 3, 9. " * 12)
    expected = list(another(llm).generate(ids, GREEDY))
    for stop_after in (1, 2, 4, 6, 20):
        llm.logits([7, 8, 9])
        stream = llm.engine.stream(ids, GREEDY)
        seen = [next(stream) for _ in range(stop_after)]
        assert isinstance(seen[0], Progress)
        stream.close()
        assert list(llm.generate(ids, GREEDY)) == expected


def test_a_stop_string_ends_the_text(llm: localr1.LLM):
    params = localr1.SamplingParams(temperature=0, stop=("carry",))
    text = llm.tokenizer.decode(list(llm.generate(prompt(llm, "What is 347 + 586?"), params)))
    assert text.count("carry") == 1
    assert text.rstrip().endswith("carry")


def test_the_same_seed_writes_the_same_text(llm: localr1.LLM):
    ids = prompt(llm, "What is 20 + 22?")
    params = localr1.SamplingParams(temperature=1.5, top_p=1, seed=11, max_tokens=40)
    assert list(llm.generate(ids, params)) == list(llm.generate(ids, params))


def test_greedy_text_is_transformers(tmp_path: Path):
    """50 problems from a BF16 folder: the same text as transformers' generate on at least 49."""
    folder = toy.hf_folder_from_gguf(toy.TINY_R1, tmp_path / "bf16")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    llm = localr1.load(folder)
    params = localr1.SamplingParams(temperature=0, max_tokens=400)
    problems = [json.loads(line) for line in PROBLEMS.read_text("utf-8").splitlines()]
    same = 0
    for problem in problems[::4][:50]:
        ids = prompt(llm, problem["prompt"])
        own = list(llm.generate(ids, params))
        with torch.inference_mode():
            theirs = reference.generate(
                torch.tensor([ids]), max_new_tokens=400, do_sample=False, eos_token_id=1
            )[0, len(ids) :].tolist()
        same += own == [token for token in theirs if token != 1]
    assert same >= 49
