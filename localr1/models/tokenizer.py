"""Text to token ids and back: byte-level BPE, from a GGUF file's metadata or a `tokenizer.json`.

The merging is done by the `tokenizers` library. What is ours is the line between text and
markers: `encode(text)` never yields a marker such as `<｜Assistant｜>`, whatever the text says;
`encode(text, special=True)` is for prompts that our own template has rendered. No BOS is added
here (the template does). Not here: SentencePiece and tiktoken files, which are refused.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from localr1.errors import BadFile
from localr1.models.vocabulary import Vocabulary, folder_vocabulary, gguf_vocabulary

# What reading a list as a number, or a missing field, comes to in a damaged file.
_WRONG_SHAPE = (TypeError, ValueError, LookupError, AttributeError, OverflowError)

# Markers that end a reply even when the file forgets to call them its end (files of many hands).
_END_MARKERS = frozenset(
    (
        "<｜end▁of▁sentence｜>",
        "<|EOT|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "[EOS]",
        "[EOT]",
    )
)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


class Tokenizer:
    """One model's tokenizer. `n_vocab` ids; `bos_id` and `eos_id` may be None.

    `stop_ids`: every id that ends a reply. `markers`: text -> id of what only `special=True` sees.
    `add_bos`: the file asks for a BOS in front of a prompt.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = vocabulary
        self._texts, self._words = v.texts, v.words
        self._bpe = _build(v)
        self._added = {**v.literals, **v.markers}
        self._bytes: dict[int, bytes] = {i: text.encode() for text, i in self._added.items()}
        self.markers = v.markers
        self.n_vocab = len(v.texts)
        self.bos_id, self.eos_id, self.add_bos = v.bos_id, v.eos_id, v.add_bos
        ends = {v.markers[text] for text in _END_MARKERS if text in v.markers}
        self.stop_ids = v.stop_ids | ends | ({v.eos_id} if v.eos_id is not None else set())

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From `tokenizer.ggml.*`; BadFile or Unsupported say what is missing or unknown."""
        try:
            return cls(gguf_vocabulary(metadata))
        except _WRONG_SHAPE as error:
            raise _damaged(error) from error

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From `tokenizer.json` and the configs beside it in a Hugging Face folder."""
        try:
            return cls(folder_vocabulary(Path(path)))
        except _WRONG_SHAPE as error:
            raise _damaged(error) from error

    def token_id(self, text: str) -> int | None:
        """The id of a marker, or of a word as the file writes it; None if there is none."""
        return self._added.get(text, self._words.get(text))

    def token_text(self, token: int) -> str:
        """The text of a token as the file writes it (`Ġthe`, `<｜User｜>`)."""
        self.token_bytes(token)
        return self._texts[token]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS. `special=True` also reads markers: rendered prompts only.

        A lone surrogate (what Python makes of undecodable input) counts as U+FFFD.
        """
        text = _without_surrogates(text)
        if not special:
            return self._plain(text)
        return [
            token
            for piece, marker in self.split(text)
            for token in ([marker] if marker is not None else self._plain(piece))
        ]

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Cut `text` at its markers: (plain text, None) and (marker, id), in order."""
        start = 0
        for match in self._marker_pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()], None
            yield match[0], self.markers[match[0]]
            start = match.end()
        if start < len(text):
            yield text[start:], None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, markers spelled out, bytes that are no UTF-8 as U+FFFD.

        The same as transformers' `decode(skip_special_tokens=False)`. ValueError: id out of range.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; ids that pad the vocabulary stand for none."""
        known = self._bytes.get(token)
        if known is not None:
            return known
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
        text = self._texts[token]
        try:
            made = bytes(_BYTES[c] for c in text)
        except KeyError:  # not in the byte alphabet, so the file means the characters themselves
            made = text.encode("utf-8", "replace")
        self._bytes[token] = made
        return made

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _marker_pattern(self) -> re.Pattern[str]:
        # longest first: at one place the longest marker wins, as in tokenizers and llama.cpp
        texts = sorted(self.markers, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")


class Detokenizer:
    """Turns a stream of ids into text, as soon as each character is whole.

    What `push` and `flush` return, joined, is `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; "" while a character is still open."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end (U+FFFD for an open character); ready for another stream."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # the round trip joins the halves that pair and replaces the others
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _damaged(error: Exception) -> BadFile:
    return BadFile(
        f"the model's tokenizer cannot be used: {error}",
        "the file may be damaged; get it again, or check it with `localr1 verify`",
    )


def _build(v: Vocabulary) -> tokenizers.Tokenizer:
    """The library's tokenizer, knowing no marker, so that no text can spell one."""
    skeleton: dict[str, object] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": v.normalizer,
        "pre_tokenizer": v.pre_tokenizer,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(skeleton))
        words = {**v.words, **v.literals}
        built.model = tokenizers.models.BPE(
            vocab=words, merges=v.merges, ignore_merges=v.ignore_merges
        )
    except Exception as error:  # the library raises bare Exceptions for files it cannot use
        raise _damaged(error) from error
    built.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in v.literals])
    return built
