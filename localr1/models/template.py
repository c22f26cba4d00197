"""A conversation as the prompt its model was trained on: the model's own chat template, to ids.

The template is code from a stranger's file and runs in sandbox.py's bounds. The messages are words
of strangers too: no text in them can become a marker. Before rendering, a character that occurs
nowhere else is put into everything in the messages that could be part of a marker; the rendered
prompt is then cut at the markers that are left, which only the template can have written.
R1's rules are kept here: thinking starts in the prompt, old thoughts stay out, one BOS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from localr1.errors import BadFile, LocalR1Error
from localr1.models.sandbox import Sandbox
from localr1.models.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
_ASSISTANT = "<｜Assistant｜>"

# What DeepSeek-V3 and R1 expect, for files that bring no template.
DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages if m.role == 'system' %}"
    "{{ ('' if loop.first else '\\n\\n') ~ m.content }}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' ~ m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' ~ m.content ~ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)

# What DeepSeek LLM and V2 expect: their vocabulary has no markers for the speakers.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content ~ '\n\n' }}"
    "{% elif m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' ~ m.content ~ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# Qwen, SmolLM and many others.
CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3_TEMPLATE = (
    "{% macro turn(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}"
    "{% endmacro %}{{ bos_token }}{% for m in messages %}"
    "{{ turn(m.role) ~ m.content | trim ~ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ turn('assistant') }}{% endif %}"
)

# The marker of a vocabulary that tells which template its chat models were trained on.
_TEMPLATES = {
    _ASSISTANT: DEEPSEEK_TEMPLATE,
    "<|im_start|>": CHATML_TEMPLATE,
    "<|start_header_id|>": LLAMA3_TEMPLATE,
}


class ChatMessage(Protocol):
    """What a template needs of a message: who speaks, and the text."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """Token ids to read before the reply, and whether the reply begins inside a thought."""

    ids: list[int]
    in_reasoning: bool


class ChatTemplate:
    """One model's chat template. `source` None or empty: the one that the markers in its
    vocabulary belong to (DeepSeek's, ChatML, Llama 3's), else `PLAIN_TEMPLATE`.

    `reasons`: the model thinks first. That is so when its template knows of `</think>`, or, where
    the file has no template, when its vocabulary has `<think>`. Only then is a thought opened that
    the template leaves closed (older R1 files end the prompt at `<｜Assistant｜>`).
    `think_open_ids`, `think_close_ids`: the ids of `<think>` and `</think>`, more than one each
    where they are no single tokens. LocalR1Error: the template cannot be compiled.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        marked = (_TEMPLATES[m] for m in _TEMPLATES if tokenizer.token_id(m) is not None)
        self.source = source or next(marked, PLAIN_TEMPLATE)
        self.reasons = END_THINK in source if source else tokenizer.token_id(THINK) is not None
        self._tokenizer = tokenizer
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(self.source)
        except Exception as error:  # jinja's own errors, and what compiling strange code may raise
            raise _template_error(error) from error
        self.think_open_ids = tokenizer.encode(THINK, special=True)
        self.think_close_ids = tokenizer.encode(END_THINK, special=True)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template in a GGUF file's metadata (`tokenizer.chat_template`)."""
        source = metadata.get("tokenizer.chat_template")
        return cls(None if source is None else str(source), tokenizer)

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a Hugging Face folder: chat_template.jinja or tokenizer_config.json."""
        return cls(_folder_source(Path(path)), tokenizer)

    def encode(self, messages: Iterable[ChatMessage], add_generation_prompt: bool = True) -> Prompt:
        """The prompt of a conversation. LocalR1Error: the template fails on it."""
        turns = [{"role": m.role, "content": self._visible(m)} for m in messages]
        guard = _unused_character([self.source, *(text for t in turns for text in t.values())])
        for turn in turns:
            turn["content"] = self._guarded(turn["content"], guard)
        text = self._render(turns, add_generation_prompt)
        in_reasoning = False
        if add_generation_prompt:
            if self.reasons and text.rstrip().endswith(_ASSISTANT):
                text += THINK + "\n"
            in_reasoning = text.rstrip().endswith(THINK)
        return Prompt(self._one_bos(self._ids(text, guard)), in_reasoning)

    def _visible(self, message: ChatMessage) -> str:
        """The text without an old thought, cut as R1's template does: after the last `</think>`."""
        text = message.content or ""
        if self.reasons and message.role == "assistant":
            return text.rpartition(END_THINK)[2]
        return text

    @cached_property
    def _marker_edges(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """The characters that begin a marker, and those that end one.

        A marker that a text has any part in then holds a guard: also one that the template's next
        words, or the next message, would complete.
        """
        markers = {*self._tokenizer.markers, THINK, END_THINK}
        firsts, lasts = ("".join({m[i] for m in markers}) for i in (0, -1))
        return re.compile(f"([{re.escape(firsts)}])"), re.compile(f"([{re.escape(lasts)}])")

    def _guarded(self, text: str, guard: str) -> str:
        first, last = self._marker_edges
        return last.sub(rf"{guard}\1", first.sub(rf"\1{guard}", text))

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        values = {
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._marker_text(self._tokenizer.bos_id),
            "eos_token": self._marker_text(self._tokenizer.eos_id),
            "tools": None,
            "documents": None,
        }
        try:
            return self._sandbox.render(self._template, values)
        except Exception as error:  # a template is a program: it can raise anything
            raise _template_error(error) from error

    def _marker_text(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.token_text(token)

    def _ids(self, text: str, guard: str) -> list[int]:
        ids: list[int] = []
        for piece, marker in self._tokenizer.split(text):
            if marker is not None:
                ids.append(marker)
            else:
                ids += self._tokenizer.encode(piece.replace(guard, ""))
        return ids

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front when the template prints one or the file asks for one."""
        bos = self._tokenizer.bos_id
        if bos is None:
            return ids
        start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        wanted = start > 0 or self._tokenizer.add_bos
        return [bos, *ids[start:]] if wanted else ids


def _unused_character(texts: list[str]) -> str:
    """A private-use character that none of the texts holds, so that none can imitate it."""
    used = set().union(*texts)
    planes = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
    free = (chr(code) for plane in planes for code in plane if chr(code) not in used)
    guard = next(free, None)
    if guard is None:
        raise LocalR1Error(
            "the conversation uses every private character of Unicode",
            "take the message apart; no honest text does this",
        )
    return guard


def _template_error(error: Exception) -> LocalR1Error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return LocalR1Error(
        f"the model's chat template cannot be used: {reason[:300]}",
        "the template comes with the model's file; get the file from another source",
    )


def _folder_source(folder: Path) -> str | None:
    separate = folder / "chat_template.jinja"
    config = folder / "tokenizer_config.json"
    try:
        if separate.exists():
            return separate.read_text(encoding="utf-8")
        if not config.exists():
            return None
        source = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except ValueError as error:
        raise BadFile(
            f"{folder}'s chat template cannot be read: {error}", "get it again"
        ) from error
    if isinstance(source, list):  # several, each with a name
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or next(iter(named.values()), None)
    return source
