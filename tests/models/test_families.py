"""The prompts of each family of models, on its real vocabulary: what transformers renders.

DeepSeek's distilled models have the vocabulary of Llama 3 or Qwen with DeepSeek's own markers in
the place of some others; they are made here as their GGUF files say it.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from localr1.models.gguf import GGUFFile
from localr1.models.template import CHATML_TEMPLATE, LLAMA3_TEMPLATE, ChatTemplate
from localr1.models.tokenizer import Tokenizer
from tests.models.samples import (
    Message,
    conversation,
    folder_of,
    gguf_metadata,
    smollm2,
    texts,
)

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
# Where the distilled models put DeepSeek's markers.
DISTILLED = {
    "llama-3.1": {
        BOS: 128000, EOS: 128001, USER: 128011, ASSISTANT: 128012,
        "<think>": 128013, "</think>": 128014,
    },
    "qwen3": {
        EOS: 151643, USER: 151644, ASSISTANT: 151645, BOS: 151646,
        "<think>": 151648, "</think>": 151649,
    },
}  # fmt: skip
SPEAKERS = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for m in messages if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endfor %}"
    "{{ ns.system }}{% for m in messages %}{% set c = m['content'] %}"
)
ANSWER = (
    "{% if m['role'] == 'assistant' %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}"
)
FIRST = (
    SPEAKERS + "{% if m['role'] == 'user' %}{{ '<｜User｜>' + c }}{% endif %}" + ANSWER
    + "{{ '<｜Assistant｜>' + c + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)  # fmt: skip
TEMPLATES = {
    "January 2025": FIRST,
    "February 2025": FIRST.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}"),
    # R1-0528 writes the marker of its turn behind the question
    "May 2025": SPEAKERS
    + "{% if m['role'] == 'user' %}{{ '<｜User｜>' + c + '<｜Assistant｜>' }}{% endif %}"
    + ANSWER
    + "{{ c + eos_token }}{% endif %}{% endfor %}",
    "none": None,
}
# The parts of Llama 3.1's own template that ask the program for something.
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for m in messages %}
    {%- if m.role not in ('user', 'assistant') %}{{- raise_exception('who?') }}{%- endif %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{- m['content'] | trim }}{%- endgeneration %}{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""


def rendered(source: str, messages: list[Message], bos: str = "", eos: str = "") -> str:
    """What transformers makes of it."""
    said = [[vars(m) for m in messages]]
    values = {"chat_template": source, "bos_token": bos, "eos_token": eos}
    pages, _ = render_jinja_template(said, add_generation_prompt=True, **values)
    return pages[0]


def distilled(name: str) -> dict[str, Any]:
    """The metadata of a model that was distilled into this family."""
    metadata = gguf_metadata(folder_of(name), pre="deepseek-r1-qwen" if name == "qwen3" else "")
    markers = DISTILLED[name]
    tokens = [f"old{t}" if t in markers else t for t in metadata["tokenizer.ggml.tokens"]]
    types = metadata["tokenizer.ggml.token_type"]
    for text, token in markers.items():
        tokens[token] = text
        types[token] = 3 if text in (BOS, EOS) else 4  # as the converter writes them
    ends = {f"tokenizer.ggml.{n}_token_id": markers[t] for n, t in (("bos", BOS), ("eos", EOS))}
    added = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.add_bos_token": True}
    return metadata | added | ends


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_models(name: str) -> None:
    metadata = distilled(name)
    tokenizer = Tokenizer.from_gguf(metadata)
    markers = DISTILLED[name]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (markers[BOS], markers[EOS])
    assert markers[EOS] in tokenizer.stop_ids
    messages = conversation("Hi", "<think>\nhm\n</think>\n\nHello.", "1+1?", system="Be kind.")
    wanted = f"{BOS}Be kind.{USER}Hi{ASSISTANT}\n\nHello.{EOS}{USER}1+1?{ASSISTANT}<think>\n"
    for source in TEMPLATES.values():
        template = ChatTemplate.from_gguf({"tokenizer.chat_template": source}, tokenizer)
        prompt = template.encode(messages)
        assert tokenizer.decode(prompt.ids) == wanted
        assert (template.reasons, prompt.in_reasoning) == (True, True)
        assert (prompt.ids[0], prompt.ids.count(markers[BOS])) == (markers[BOS], 1)
        assert template.think_close_ids == [markers["</think>"]]
        user = template.encode(conversation("".join(markers))).ids
        assert {i for i in user if i in markers.values()} == {
            markers[m] for m in (BOS, USER, ASSISTANT, "<think>")
        }
        if source:
            assert rendered(source, messages, BOS, EOS) in (
                wanted,
                wanted.removesuffix("<think>\n"),
            )


@pytest.mark.parametrize("name", ["llama-3.1", "qwen3"])
def test_instruct_models(name: str) -> None:
    folder = folder_of(name)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template.reasons == (name == "qwen3")
    same_as_transformers(template, tokenizer, config["bos_token"] or "")
    fallback = ChatTemplate(None, tokenizer)
    assert fallback.source == (CHATML_TEMPLATE if name == "qwen3" else LLAMA3_TEMPLATE)
    for messages in (conversation(" Hi"), conversation("Hi", "Hello. ", "1+1?", system="Be kind.")):
        prompt = fallback.encode(messages)
        assert prompt.ids == template.encode(messages).ids
        assert not prompt.in_reasoning


def test_what_llama31_asks_of_the_program() -> None:
    tokenizer = Tokenizer.from_folder(folder_of("llama-3.1"))
    same_as_transformers(ChatTemplate(LLAMA31, tokenizer), tokenizer, "<|begin_of_text|>")


def test_a_model_that_never_thinks() -> None:
    metadata = GGUFFile.open(smollm2()).metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    template = ChatTemplate.from_gguf(metadata, tokenizer)
    same_as_transformers(template, tokenizer, "")
    prompt = template.encode(conversation("Hi", "<think>a</think>b", "c"))
    assert (template.reasons, prompt.in_reasoning) == (False, False)
    assert "<think>a</think>b<|im_end|>" in tokenizer.decode(prompt.ids)


def same_as_transformers(template: ChatTemplate, tokenizer: Tokenizer, bos: str) -> None:
    """Any conversation without markers gives the text that transformers renders, as ids."""
    rng = random.Random(11)
    strings = [s for s in texts(300, seed=12) if s.strip() and s.isprintable()]
    assert len(strings) > 40
    for _ in range(40):
        system = rng.choice([None, "You are kind.", rng.choice(strings)])
        messages = conversation(*rng.sample(strings, rng.choice([1, 3, 5])), system=system)
        text = rendered(template.source, messages, bos)
        assert template.encode(messages).ids == tokenizer.encode(text, special=True)
