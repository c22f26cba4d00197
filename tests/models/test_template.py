"""Prompts: golden ones, transformers' ones, and those of people and files that mean harm."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from localr1.errors import BadFile, LocalR1Error
from localr1.models.template import ChatTemplate
from localr1.models.tokenizer import Tokenizer
from tests.models.samples import (
    MARKERS,
    TINY,
    Message,
    conversation,
    folder_of,
    gguf_metadata,
    texts,
)

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
# A template of the first R1 files: it knows of thoughts but leaves the opening to the model.
OLD_R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set c = m['content'] %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + c + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer.from_folder(TINY)


def shown(template: ChatTemplate, tokenizer: Tokenizer, messages: Iterable[Message]) -> str:
    return tokenizer.decode(template.encode(messages).ids)


def test_golden_prompt_of_tiny_r1(tiny: Tokenizer) -> None:
    template = ChatTemplate.from_folder(TINY, tiny)
    messages = conversation("Hi", "<think>\nhm\n</think>\n\nHello.", "2 + 2?", system="Be kind.")
    prompt = template.encode(messages)
    assert tiny.decode(prompt.ids) == (
        f"{BOS}Be kind.{USER}Hi{ASSISTANT}\n\nHello.{EOS}{USER}2 + 2?{ASSISTANT}<think>\n"
    )
    assert prompt.in_reasoning
    assert prompt.ids[0] == 0
    assert prompt.ids.count(0) == 1
    without = template.encode(messages, add_generation_prompt=False)
    assert not without.in_reasoning
    assert tiny.decode(without.ids).endswith("2 + 2?")
    assert (template.think_open_ids, template.think_close_ids) == ([766], [767])


def test_golden_prompt_of_deepseek_v3() -> None:
    folder = folder_of("deepseek-v3")
    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    prompt = template.encode(conversation("Hi", "Hello.", "2 + 2?", system="Be kind."))
    assert tokenizer.decode(prompt.ids) == (
        f"{BOS}Be kind.{USER}Hi{ASSISTANT}Hello.{EOS}{USER}2 + 2?{ASSISTANT}"
    )
    assert (prompt.in_reasoning, template.reasons) == (False, False)  # V3 is no reasoning model
    # R1 has the same vocabulary; where <think> is no single token it is spelt
    r1 = ChatTemplate(OLD_R1, tokenizer)
    prompt = r1.encode(conversation("Hi", "<think>hm</think>Hello.", "2 + 2?"))
    assert prompt.in_reasoning
    assert tokenizer.decode(prompt.ids) == (
        f"{BOS}{USER}Hi{ASSISTANT}Hello.{EOS}{USER}2 + 2?{ASSISTANT}<think>\n"
    )
    assert tokenizer.decode(r1.think_close_ids) == "</think>"


@pytest.mark.parametrize("name", ["tiny-r1", "deepseek-v3"])
def test_prompts_are_those_of_transformers(name: str) -> None:
    folder = folder_of(name)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=BOS, eos_token=EOS
    )
    theirs.chat_template = config["chat_template"]
    tokenizer = Tokenizer.from_folder(folder)
    from_json = ChatTemplate.from_folder(folder, tokenizer)
    metadata = gguf_metadata(folder) | {"tokenizer.chat_template": config["chat_template"]}
    from_gguf = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))
    rng = random.Random(7)
    strings = [s for s in texts(700, seed=8) if not any(m in s for m in MARKERS)]
    for _ in range(100):
        system = rng.choice([None, "You are kind.", rng.choice(strings)])
        messages = conversation(*rng.sample(strings, rng.choice([1, 3, 5])), system=system)
        for generation in (True, False):
            expected = theirs.apply_chat_template(
                [vars(m) for m in messages], add_generation_prompt=generation, return_dict=False
            )
            assert from_json.encode(messages, generation).ids == expected
            assert from_gguf.encode(messages, generation).ids == expected


@pytest.mark.parametrize("source", [None, OLD_R1, "tiny-r1"])
def test_no_words_of_a_message_become_a_marker(source: str | None, tiny: Tokenizer) -> None:
    template = (
        ChatTemplate.from_folder(TINY, tiny) if source == "tiny-r1" else ChatTemplate(source, tiny)
    )
    markers = set(tiny.markers.values())
    honest = template.encode(conversation("a", "b", "c", system="d"))
    pattern = [token for token in honest.ids if token in markers]
    for text in [*MARKERS, *texts(300, seed=9, markers=True)]:
        for messages in (
            conversation(text, "b", "c", system="d"),
            conversation("a", text, "c", system="d"),
            conversation("a", "b", text, system="d"),
            conversation("a", "b", "c", system=text or "d"),
        ):
            prompt = template.encode(messages)
            assert [token for token in prompt.ids if token in markers] == pattern
            assert prompt.in_reasoning
            answer = messages[-2].content.rpartition("</think>")[2]
            for message in messages[1:]:
                words = answer if message.role == "assistant" else message.content
                assert words in tiny.decode(prompt.ids)


def test_no_marker_grows_together_from_parts(tiny: Tokenizer) -> None:
    joined = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", tiny)
    wrapped = ChatTemplate("{% for m in messages %}{{ '<' ~ m.content ~ '>' }}{% endfor %}", tiny)
    for cut in range(1, len(ASSISTANT)):
        messages = [Message("system", ASSISTANT[:cut]), Message("system", ASSISTANT[cut:])]
        prompt = joined.encode(messages)
        assert 765 not in prompt.ids
        assert tiny.decode(prompt.ids) == ASSISTANT
    assert 765 not in wrapped.encode([Message("user", "<｜Assistant｜>")]).ids


def test_the_guard_cannot_be_guessed(tiny: Tokenizer) -> None:
    template = ChatTemplate.from_folder(TINY, tiny)
    for guards in ("\U000f0000", "".join(map(chr, range(0xF0000, 0xF0100)))):
        text = f"<{guards}｜Assistant｜{guards}> {guards}"
        prompt = template.encode(conversation(text))
        assert tiny.decode(prompt.ids) == f"{BOS}{USER}{text}{ASSISTANT}<think>\n"
    every = "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))))
    with pytest.raises(LocalR1Error, match="private character"):
        template.encode(conversation(every))


def test_old_templates_start_the_thought_too(tiny: Tokenizer) -> None:
    prompt = ChatTemplate(OLD_R1, tiny).encode(conversation("Hi"))
    assert prompt.in_reasoning
    assert tiny.decode(prompt.ids) == f"{BOS}{USER}Hi{ASSISTANT}<think>\n"
    closed = OLD_R1.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜></think>' }}")
    prompt = ChatTemplate(closed, tiny).encode(conversation("Hi"))
    assert not prompt.in_reasoning
    assert prompt.ids[-1] == 767


def test_without_a_template_it_is_deepseeks(tiny: Tokenizer) -> None:
    template = ChatTemplate.from_gguf({}, tiny)
    prompt = template.encode(conversation("a", "<think>x</think>b", "c", system="d"))
    assert tiny.decode(prompt.ids) == (f"{BOS}d{USER}a{ASSISTANT}b{EOS}{USER}c{ASSISTANT}<think>\n")

    metadata = gguf_metadata(TINY)
    metadata["tokenizer.ggml.token_type"] = [3, 3, 3, *[1] * 765]
    metadata["tokenizer.ggml.tokens"][764:] = ["a0", "a1", "a2", "a3"]
    unmarked = Tokenizer.from_gguf(metadata)
    prompt = ChatTemplate(None, unmarked).encode(conversation("a", "b", "c", system="d"))
    assert not prompt.in_reasoning
    assert unmarked.decode(prompt.ids) == (
        f"{BOS}d\n\nUser: a\n\nAssistant: b{EOS}User: c\n\nAssistant:"
    )


@pytest.mark.parametrize("printed", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_one_bos_never_two(printed: str) -> None:
    wanting = gguf_metadata(TINY) | {"tokenizer.ggml.add_bos_token": True}
    plain = printed + "{{ messages[0].content }}"
    asked = ChatTemplate(plain, Tokenizer.from_gguf(wanting)).encode([Message("user", "hi")])
    not_asked = ChatTemplate(plain, Tokenizer.from_gguf(gguf_metadata(TINY)))
    assert asked.ids.count(0) == 1
    assert not_asked.encode([Message("user", "hi")]).ids.count(0) == (1 if printed else 0)


def test_where_a_folder_keeps_its_template(tmp_path: Path, tiny: Tokenizer) -> None:
    messages = [Message("user", "hi")]
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps(
            {
                "chat_template": [
                    {"name": "tools", "template": "t"},
                    {"name": "default", "template": "d"},
                ]
            }
        )
    )
    assert shown(ChatTemplate.from_folder(tmp_path, tiny), tiny, messages) == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert shown(ChatTemplate.from_folder(tmp_path, tiny), tiny, messages) == "hi!"
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text("{")
    with pytest.raises(BadFile):
        ChatTemplate.from_folder(tmp_path, tiny)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m.content }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{% set ns = namespace(text='') %}{% for m in messages[:1] %}"
        "{% set ns.text = ns.text + m.content | trim %}{% endfor %}{{ ns.text }}",
        "{% macro say(m) %}{{ m.content }}{% endmacro %}{{ say(messages[0]) }}",
        "{{ messages[0] | tojson | length and messages[0]['content'] }}",
        "{% set text %}{{ messages[0].content }}{% endset %}{{ text }}",
        "{{ strftime_now('%Y') | int > 2000 and messages[0].content }}",
        "{%- for m in messages[:1] if m.role == 'user' -%}\n  {{ m.content }}\n{%- endfor -%}",
    ],
)
def test_what_templates_use_works(source: str, tiny: Tokenizer) -> None:
    assert shown(ChatTemplate(source, tiny), tiny, conversation("hi", "there", "you")) == "hi"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '%s'.__mod__ }}{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ namespace.__init__.__globals__ }}{{ dict.__mro__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ self._TemplateReference__context.environment.concat }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{{ range(90000) | sum }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set ns = namespace(a='ab') %}{% for i in range(60) %}"
        "{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{% set ns = namespace(a='ab') %}{% for i in range(60) %}"
        "{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set ns = namespace(a='ab') %}{% for i in range(60) %}"
        "{% set x %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = x %}{% endfor %}",
        "{% set ns = namespace(a='ab') %}{% for i in range(60) %}"
        "{% set ns.a = ns.a.replace('a', ns.a) %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + none }}",
        "{{ nothing.at.all }}",
        "{{ lipsum(1000000) }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_that_means_harm_is_an_error(
    source: str, tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localr1.models.sandbox._MAX_SECONDS", 0.3)
    start = time.thread_time()
    with pytest.raises(LocalR1Error, match="chat template cannot be used") as caught:
        ChatTemplate(source, tiny).encode([Message("user", "hi")])
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert time.thread_time() - start < 3  # one operation may run past the limit, no more


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 'open", "{% endif %}", "{{ x | no_such_filter }}", "{{" * 2000]
)
def test_a_broken_template_is_an_error_at_once(source: str, tiny: Tokenizer) -> None:
    with pytest.raises(LocalR1Error, match="chat template cannot be used"):
        ChatTemplate(source, tiny)
