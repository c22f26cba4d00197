"""A folder's tokenizer as GGUF metadata, for tools/convert.py.

Byte-level BPE from tokenizer.json: tokens with their kinds, merges, special ids, chat template. A
folder without tokenizer.json (a toy model of the tests) becomes a file without a vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from localr1.errors import Unsupported


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, n_vocab: int, pre: str) -> None:
    """Add the tokenizer of `folder` for a model with `n_vocab` rows in its embedding."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        writer.add_tokenizer_model("none")
        return
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "BPE":
        raise Unsupported(f"a tokenizer of the type {tokenizer['model']['type']} is not supported")
    tokens, types = _tokens(tokenizer, n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    _add_settings(writer, folder)


def _tokens(tokenizer: dict[str, Any], n_vocab: int) -> tuple[list[str], list[int]]:
    """Texts and kinds of all ids; an id without a token gets llama.cpp's usual filler."""
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [int(gguf.TokenType.UNUSED)] * n_vocab
    for text, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = text, int(gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        text = added["content"]
        # DeepSeek marks <｜User｜> and the like as not special, yet they are control tokens
        control = added["special"] or (text.startswith("<｜") and text.endswith("｜>"))
        kind = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = text, int(kind)
    return tokens, types


def _add_settings(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Special ids (config.json), whether to add them, chat template (tokenizer_config.json)."""
    config = _read(folder / "config.json")
    settings = _read(folder / "tokenizer_config.json")
    for kind, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        value = config.get(f"{kind}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int):
            add(value)
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    writer.add_add_eos_token(bool(settings.get("add_eos_token", False)))
    template = folder / "chat_template.jinja"
    if isinstance(settings.get("chat_template"), str):
        writer.add_chat_template(settings["chat_template"])
    elif template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
