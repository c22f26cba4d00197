"""Token ids against the Hugging Face tokenizer, and both kinds of file against each other."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from localr1.errors import BadFile, ModelNotFound, Unsupported
from localr1.models.gguf import GGUFFile
from localr1.models.tokenizer import Tokenizer
from tests.models.samples import MARKERS, TINY, VOCABULARIES, folder_of, gguf_metadata, texts

COUNT = 2_000
ENDS = {  # what ends a reply
    "tiny-r1": {"<｜end▁of▁sentence｜>"},
    "deepseek-v3": {"<｜end▁of▁sentence｜>", "<|EOT|>"},
    "llama-3.1": {"<|eot_id|>", "<|end_of_text|>"},
    "qwen3": {"<|im_end|>", "<|endoftext|>"},
}


class Vocabulary(NamedTuple):
    folder: Path
    hugging_face: tokenizers.Tokenizer
    from_json: Tokenizer
    from_gguf: Tokenizer


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    folder = folder_of(request.param)
    return Vocabulary(
        folder,
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
        Tokenizer.from_folder(folder),
        Tokenizer.from_gguf(gguf_metadata(folder)),
    )


def unchanged(vocabulary: Vocabulary, strings: list[str]) -> list[str]:
    """Those that survive a round trip: Qwen composes characters before it reads them."""
    if vocabulary.folder.name != "qwen3":
        return strings
    return [text for text in strings if unicodedata.is_normalized("NFC", text)]


def hugging_face_ids(vocabulary: Vocabulary, strings: list[str]) -> list[list[int]]:
    batch = vocabulary.hugging_face.encode_batch(strings, add_special_tokens=False)
    return [encoding.ids for encoding in batch]


def test_ids_are_those_of_hugging_face(vocabulary: Vocabulary) -> None:
    strings = [s for s in texts(COUNT + 50) if not any(m in s for m in MARKERS)][:COUNT]
    expected = hugging_face_ids(vocabulary, strings)
    assert len(strings) == COUNT
    assert [vocabulary.from_json.encode(s) for s in strings] == expected
    assert [vocabulary.from_gguf.encode(s) for s in strings] == expected
    assert [vocabulary.from_json.encode(s, special=True) for s in strings] == expected


def test_markers_are_read_where_asked_for(vocabulary: Vocabulary) -> None:
    strings = texts(COUNT, seed=1, markers=True)
    expected = hugging_face_ids(vocabulary, strings)
    assert [vocabulary.from_json.encode(s, special=True) for s in strings] == expected
    assert [vocabulary.from_gguf.encode(s, special=True) for s in strings] == expected


def test_a_users_text_never_becomes_a_marker(vocabulary: Vocabulary) -> None:
    spec = json.loads((vocabulary.folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"] for token in spec["added_tokens"]}
    spec["added_tokens"] = []
    unmarked = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for tokenizer in (vocabulary.from_json, vocabulary.from_gguf):
        for text in [*MARKERS, *unchanged(vocabulary, texts(300, seed=2, markers=True))]:
            ids = tokenizer.encode(text)
            assert added.isdisjoint(ids)
            assert ids == unmarked.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids) == text


def test_decode_is_that_of_transformers(vocabulary: Vocabulary) -> None:
    path = str(vocabulary.folder / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=path, clean_up_tokenization_spaces=False)
    strings = unchanged(vocabulary, texts(500, seed=3, markers=True))
    for text, ids in zip(strings, hugging_face_ids(vocabulary, strings), strict=True):
        assert vocabulary.from_json.decode(ids) == text
        assert vocabulary.from_gguf.decode(ids) == text
        # cut in the middle of characters too
        assert vocabulary.from_json.decode(ids[1:-1]) == theirs.decode(ids[1:-1])


def test_both_kinds_of_file_know_the_same(vocabulary: Vocabulary) -> None:
    ours, other = vocabulary.from_json, vocabulary.from_gguf
    assert (ours.n_vocab, ours.bos_id, ours.eos_id) == (other.n_vocab, other.bos_id, other.eos_id)
    assert ours.markers == other.markers
    assert ours.stop_ids == other.stop_ids
    assert {ours.token_text(i) for i in ours.stop_ids} == ENDS[vocabulary.folder.name]
    adds_bos = vocabulary.folder.name in ("deepseek-v3", "llama-3.1")
    assert (ours.add_bos, other.add_bos) == (adds_bos, adds_bos)
    for text, token in ours.markers.items():
        assert ours.encode(text, special=True) == [token] == [ours.token_id(text)]
    assert ours.token_id("no such token") is None
    assert [ours.token_bytes(i) for i in range(ours.n_vocab)] == [
        other.token_bytes(i) for i in range(ours.n_vocab)
    ]


def test_the_shipped_model_has_this_tokenizer() -> None:
    packaged = Path(__file__).parents[2] / "localr1" / "tiny" / "tiny-r1.gguf"
    shipped = Tokenizer.from_gguf(GGUFFile.open(packaged).metadata)
    tiny = Tokenizer.from_folder(TINY)
    assert (shipped.markers, shipped.stop_ids) == (tiny.markers, tiny.stop_ids)
    for text in texts(COUNT, seed=4, markers=True):
        assert shipped.encode(text, special=True) == tiny.encode(text, special=True)
        assert shipped.encode(text) == tiny.encode(text)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", "\ud83d\ude00", "\x00", "", "\ufffe"])
def test_no_text_is_too_odd(text: str) -> None:
    tokenizer = Tokenizer.from_folder(TINY)
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.encode(text, special=True) == tokenizer.encode(text)


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    tokenizer = Tokenizer.from_folder(TINY)
    for token in (-1, 768, 1 << 40):
        with pytest.raises(ValueError, match="outside the vocabulary of 768"):
            tokenizer.decode([token])


def test_padding_ids_stand_for_nothing(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    (tmp_path / "config.json").write_text('{"vocab_size": 800, "eos_token_id": [1, 3]}')
    padded = Tokenizer.from_folder(tmp_path)
    assert padded.n_vocab == 800
    assert padded.decode([790, 42]) == Tokenizer.from_gguf(gguf_metadata(TINY, pad_to=800)).decode(
        [790, 42]
    )
    assert padded.stop_ids == {1, 3}


def test_letters_that_are_added_tokens_stay_text() -> None:
    # DeepSeek-Coder adds `ö` and twelve other letters as tokens; a user's ö is that token
    metadata = gguf_metadata(TINY, pre="deepseek-coder")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "ö"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = Tokenizer.from_gguf(metadata)
    for special in (False, True):
        ids = tokenizer.encode("schön", special=special)
        assert 768 in ids
        assert tokenizer.decode(ids) == "schön"


def test_what_ends_a_reply() -> None:
    metadata = gguf_metadata(TINY)
    metadata |= {"tokenizer.ggml.eot_token_id": 764, "tokenizer.ggml.eom_token_id": 765}
    assert Tokenizer.from_gguf(metadata).stop_ids == {1, 764, 765}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"tokenizer.ggml.model": "llama"}, Unsupported, "'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, Unsupported, "'tekken'"),
        ({"tokenizer.ggml.tokens": None}, BadFile, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, BadFile, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["absent words"]}, BadFile, "cannot be used"),
        ({"tokenizer.ggml.merges": ["oneword"]}, BadFile, "cannot be used"),
        ({"tokenizer.ggml.token_type": [1, 1]}, BadFile, "token types"),
        ({"tokenizer.ggml.tokens": 7}, BadFile, "tokenizer.ggml.tokens"),
    ],
)
def test_files_we_cannot_use_are_refused(
    change: dict[str, object], error: type[Exception], says: str
) -> None:
    metadata = {k: v for k, v in (gguf_metadata(TINY) | change).items() if v is not None}
    with pytest.raises(error, match=says):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, ModelNotFound),
        ("{", BadFile),
        ("[]", BadFile),
        ('{"model": {"type": "Unigram"}}', Unsupported),
        ('{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}', BadFile),
        ('{"model": {"vocab": {"a": -5}, "merges": []}, "decoder": "ByteLevel"}', BadFile),
        ('{"model": {"vocab": {"a": 99999999999}, "merges": []}, "decoder": "ByteLevel"}', BadFile),
        ('{"model": {"vocab": {"a": 0}, "merges": ["a b"]}, "decoder": "ByteLevel"}', BadFile),
        (
            '{"model": {"vocab": {"a": 0}, "merges": []}, "decoder": "ByteLevel",'
            ' "added_tokens": [{"content": "<m>", "id": 1, "special": true, "lstrip": true}]}',
            Unsupported,
        ),
    ],
)
def test_folders_we_cannot_use_are_refused(
    tmp_path: Path, content: str | None, error: type[Exception]
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(error):
        Tokenizer.from_folder(tmp_path)
