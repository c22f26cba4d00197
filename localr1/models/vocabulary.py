"""What a file says about its tokens: a GGUF file's metadata or a Hugging Face folder, read alike.

Not here: turning text into ids (tokenizer.py), and how text is cut first (pretokenizers.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localr1.errors import BadFile, ModelNotFound, Unsupported
from localr1.models.pretokenizers import pretokenizer_of

# tokenizer.ggml.token_type
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_MAX_TOKENS = 1 << 24  # far above any vocabulary; a damaged number must not cost gigabytes


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


def gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """From `tokenizer.ggml.*`. Bare TypeError, ValueError… where a value has a wrong shape."""
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
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos)),
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


def folder_vocabulary(folder: Path) -> Vocabulary:
    """From `tokenizer.json` and the configs beside it; bare errors as in `gguf_vocabulary`."""
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
    entries = [t for t in spec.get("added_tokens", []) if t["content"]]
    for entry in entries:
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            raise Unsupported(
                f"the token {entry['content']!r} takes the space beside it along, which we do not",
                "the models of the R1 family have no such token; take a GGUF file of this model",
            )
    added = {str(t["content"]): int(t["id"]) for t in entries}
    control = {t["content"] for t in entries if t["special"]}
    literals = {t: i for t, i in added.items() if t not in control and _is_literal(t)}
    ids = [*words.values(), *added.values()]
    size = max(*ids, int(hf.get("vocab_size", 0)) - 1) + 1
    if size > _MAX_TOKENS or min(ids) < 0:
        raise BadFile(f"{folder} numbers its tokens {min(ids)} to {size - 1}", "get it again")
    texts = [""] * size
    for text, i in (*words.items(), *added.items()):
        texts[i] = text

    def token(name: str) -> int | None:
        value = config.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        by_id = generation.get(f"{name}_token_id", hf.get(f"{name}_token_id"))
        known = None if text is None else added.get(str(text), words.get(str(text)))
        return known if known is not None else by_id if isinstance(by_id, int) else None

    ends = generation.get("eos_token_id", hf.get("eos_token_id", []))
    bos_id = token("bos")
    return Vocabulary(
        texts=texts,
        words=words,
        merges=[_pair(merge) for merge in model["merges"]],
        markers={t: i for t, i in added.items() if t not in literals},
        literals=literals,
        pre_tokenizer=spec.get("pre_tokenizer"),
        normalizer=spec.get("normalizer"),
        ignore_merges=bool(model.get("ignore_merges", False)),
        bos_id=bos_id,
        eos_id=token("eos"),
        add_bos=bool(
            config.get("add_bos_token", bos_id is not None and _puts_first(spec, texts[bos_id]))
        ),
        stop_ids=frozenset(
            i for i in (ends if isinstance(ends, list) else [ends]) if i is not None
        ),
    )


def _puts_first(spec: Mapping[str, Any], token: str) -> bool:
    """Whether tokenizer.json's post-processor begins every text with `token` (as Llama 3's)."""
    post = spec.get("post_processor") or {}
    steps = (step.get("single") for step in post.get("processors", [post]))
    return any(step and step[0].get("SpecialToken", {}).get("id") == token for step in steps)


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


def _is_literal(text: str) -> bool:
    """Whether an added token is text rather than a marker: one character, or only white space.

    DeepSeek's first tokenisers add letters such as `ö`; other vocabularies add runs of spaces.
    """
    return len(text) == 1 or text.isspace()
