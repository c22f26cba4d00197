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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from localr1.errors import BadFile, ModelNotFound, Unsupported
from localr1.models.pretokenizers import pretokenizer_of

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

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


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokens, whichever kind of file it is.

    texts: token id -> text as the file writes it (byte alphabet, or a marker itself); "" = unused.
    words: the texts that merges may produce -> id. merges: pairs, best first.
    markers: text -> id of the added tokens, recognised only with `special=True`; `literals`: those
    that are ordinary text, recognised always. pre_tokenizer, normalizer: tokenizer.json sections.
    """

    texts: list[str]
    words: dict[str, int]
    merges: list[tuple[str, str]]
    markers: dict[str, int]
    literals: dict[str, int]
    pre_tokenizer: Mapping[str, object] | None
    normalizer: Mapping[str, object] | None = None
    ignore_merges: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    stop_ids: frozenset[int] = field(default_factory=frozenset)


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
            return cls(_gguf_vocabulary(metadata))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise _damaged(error) from error

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From `tokenizer.json` and the configs beside it in a Hugging Face folder."""
        try:
            return cls(_folder_vocabulary(Path(path)))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
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


def _is_literal(text: str) -> bool:
    """Whether an added token is text rather than a marker: one character, or only white space.

    DeepSeek's first tokenisers add letters such as `ö`; other vocabularies add runs of spaces.
    """
    return len(text) == 1 or text.isspace()


def _build(v: Vocabulary) -> tokenizers.Tokenizer:
    """The library's tokenizer, knowing no marker, so that no text can spell one."""
    skeleton = {
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


def _gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise Unsupported(
            f"the model's tokenizer is of kind {kind!r}; we read byte-level BPE ('gpt2') only",
            "DeepSeek-R1, its distilled models and their GGUF files all have it",
        )
    pre = pretokenizer_of(str(metadata.get("tokenizer.ggml.pre", "default")))
    texts = [str(text) for text in _required(metadata, "tokenizer.ggml.tokens")]
    types = [int(t) for t in metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(texts))]
    if len(types) != len(texts):
        raise BadFile(
            f"the file lists {len(texts)} tokens but {len(types)} token types",
            "the file is damaged; get it again",
        )
    added = {t: i for i, t in enumerate(texts) if t and types[i] in (_CONTROL, _USER_DEFINED)}
    literals = {t: i for t, i in added.items() if types[i] == _USER_DEFINED and _is_literal(t)}
    # A marker among the words can only do harm where a whole word is looked up before merging.
    words = {t: i for i, t in enumerate(texts) if not (pre.ignore_merges and t in added)}
    merges = [_pair(merge) for merge in _required(metadata, "tokenizer.ggml.merges")]

    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return int(value) if value is not None and 0 <= int(value) < len(texts) else None

    stops = (token(name) for name in ("eos", "eot", "eom"))
    return Vocabulary(
        texts=["" if types[i] == _UNUSED else t for i, t in enumerate(texts)],
        words=words,
        merges=merges,
        markers={t: i for t, i in added.items() if t not in literals},
        literals=literals,
        pre_tokenizer=pre.as_json(),
        normalizer={"type": "NFC"} if pre.nfc else None,
        ignore_merges=pre.ignore_merges,
        bos_id=token("bos"),
        eos_id=token("eos"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        stop_ids=frozenset(i for i in stops if i is not None),
    )


def _required(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    if key not in metadata:
        raise BadFile(f"the file has no {key}", "it is not a whole model; get it again")
    value: Sequence[Any] = metadata[key]
    if isinstance(value, (str, int, float)):
        raise BadFile(f"{key} is not a list", "the file is damaged; get it again")
    return value


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge  # ValueError if not two
    return left, right


def _folder_vocabulary(folder: Path) -> Vocabulary:
    spec = _read_json(folder / "tokenizer.json", required=True)
    model = spec.get("model", {})
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in json.dumps(spec.get("decoder")):
        raise Unsupported(
            f"the tokenizer in {folder} is not byte-level BPE",
            "DeepSeek-R1 and its distilled models have it; a GGUF file may hold another form",
        )
    config = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json")
    hf = _read_json(folder / "config.json")
    words: dict[str, int] = model["vocab"]
    added = {str(t["content"]): int(t["id"]) for t in spec.get("added_tokens", [])}
    control = {t["content"] for t in spec.get("added_tokens", []) if t["special"]}
    literals = {t: i for t, i in added.items() if t not in control and _is_literal(t)}
    size = max([*words.values(), *added.values(), int(hf.get("vocab_size", 0)) - 1]) + 1
    texts = [""] * size
    for text, i in (*words.items(), *added.items()):
        texts[i] = text

    def token(name: str) -> int | None:
        value = config.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        by_id = generation.get(f"{name}_token_id", hf.get(f"{name}_token_id"))
        return added.get(str(text), by_id if isinstance(by_id, int) else None)

    ends = generation.get("eos_token_id", hf.get("eos_token_id", []))
    return Vocabulary(
        texts=texts,
        words=words,
        merges=[_pair(merge) for merge in model["merges"]],
        markers={t: i for t, i in added.items() if t not in literals},
        literals=literals,
        pre_tokenizer=spec.get("pre_tokenizer"),
        normalizer=spec.get("normalizer"),
        ignore_merges=bool(model.get("ignore_merges", False)),
        bos_id=token("bos"),
        eos_id=token("eos"),
        add_bos=bool(config.get("add_bos_token", False)),
        stop_ids=frozenset(ends if isinstance(ends, list) else [ends]),
    )


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; {} when it is absent and not required."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ModelNotFound(
            f"the folder {path.parent} has no {path.name}",
            "take the model's whole folder, or a GGUF file (it holds the tokenizer itself)",
        ) from None
    except ValueError as error:
        raise BadFile(f"{path} is not valid JSON: {error}", "get the file again") from error
    if not isinstance(content, dict):
        raise BadFile(f"{path} does not hold a JSON object", "get the file again")
    return content
