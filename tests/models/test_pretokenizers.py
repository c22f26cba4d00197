"""Every row of the table against llama.cpp's own reading of the same name.

The vocabulary is made for the purpose: merges learnt without any pre-tokeniser run across words,
digits and spaces, so that a cut in another place gives other ids.
"""

from __future__ import annotations

import ctypes
import json
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf import GGUFWriter

from localr1.models.gguf import GGUFFile
from localr1.models.pretokenizers import PRETOKENIZERS
from localr1.models.tokenizer import Tokenizer
from tests.models.samples import VOCABULARIES, folder_of, gguf_metadata, smollm2, texts

llama_cpp = pytest.importorskip("llama_cpp")


def assigned(text: str) -> str:
    """Without the code points that Unicode had not given out: each engine has its own edition."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cn", "Co"))


SAMPLES = [assigned(text) for text in texts(1_500, seed=6)]


def no_marks_or_capitals(text: str) -> bool:
    """llama.cpp's kimi-k2 ends no word at a capital and takes no combining mark into one."""
    return not any(unicodedata.category(c) in ("Mn", "Mc", "Me", "Lu", "Lt") for c in text)


def no_long_s(text: str) -> bool:
    """`(?i:'s)` also matches 'ſ, which llama.cpp's expressions spell out without it."""
    return "ſ" not in text


def no_digit_runs(text: str) -> bool:
    """deepseek-llm cuts single digits; llama.cpp cuts runs, which its real vocabulary hides."""
    numeric = [unicodedata.category(c).startswith("N") for c in text]
    return not any(a and b for a, b in pairwise(numeric))


def no_odd_spaces(text: str) -> bool:
    """llama.cpp reads U+0085, U+2000…U+3000 as one plain space before it looks at ranges."""
    return not any(c.isspace() and ord(c) > 0x7F for c in text)


def composed(text: str) -> bool:
    """llama.cpp leaves out Qwen's normalisation."""
    return unicodedata.is_normalized("NFC", text)


# What a comparison must leave out, because llama.cpp departs from the models' tokenizer.json.
COMPARABLE: dict[str, list[Callable[[str], bool]]] = {
    "deepseek-llm": [no_digit_runs, no_odd_spaces],
    "deepseek-coder": [no_odd_spaces],
    "deepseek-r1-qwen": [composed, no_long_s],
    "qwen2": [composed, no_long_s],
    "qwen35": [composed, no_long_s],
    "llama-bpe": [no_long_s],
    "llama3": [no_long_s],
    "llama-v3": [no_long_s],
    "kimi-k2": [no_marks_or_capitals, no_long_s],
}


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """A vocabulary whose merges ignore every boundary."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=6_000, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    learner.train_from_iterator([t[i : i + 40] for t in SAMPLES for i in (0, 40)], trainer)
    model = json.loads(learner.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [1] * len(words),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
    }


def write_vocabulary(metadata: dict[str, Any], pre: str, path: Path) -> Path:
    """A GGUF file that holds nothing but the vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_ids(path: Path) -> list[list[int]]:
    """llama.cpp's ids of all samples."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    ids = []
    for text in SAMPLES:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
        ids.append(list(room[:count]))
    llama_cpp.llama_model_free(model)
    return ids


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_words_are_cut_as_llama_cpp_cuts_them(
    pre: str, metadata: dict[str, Any], tmp_path: Path
) -> None:
    theirs = llama_cpp_ids(write_vocabulary(metadata, pre, tmp_path / "vocabulary.gguf"))
    compare(Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre}), theirs, pre)


@pytest.mark.parametrize("name", ["llama-3.1", "qwen3"])
def test_real_vocabularies_give_llama_cpps_ids(name: str, tmp_path: Path) -> None:
    metadata, pre = gguf_metadata(folder_of(name)), VOCABULARIES[name]
    theirs = llama_cpp_ids(write_vocabulary(metadata, pre, tmp_path / "vocabulary.gguf"))
    compare(Tokenizer.from_gguf(metadata), theirs, pre)


def test_a_real_file_gives_llama_cpps_ids() -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(smollm2()).metadata)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.stop_ids) == (1, False, {0, 2})
    compare(tokenizer, llama_cpp_ids(smollm2()), "smollm")


def compare(ours: Tokenizer, theirs: list[list[int]], pre: str) -> None:
    tests = COMPARABLE.get(pre, [])
    pairs = [
        (text, ids)
        for text, ids in zip(SAMPLES, theirs, strict=True)
        if all(test(text) for test in tests)
    ]
    assert len(pairs) > 200
    wrong = [text for text, ids in pairs if ours.encode(text) != ids]
    assert wrong == []


def test_kimi_cuts_as_its_own_expression_says() -> None:
    regex = pytest.importorskip("regex")  # the other engine here that intersects classes
    pattern = regex.compile("(?V1)" + PRETOKENIZERS["kimi-k2"].patterns[0])
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(PRETOKENIZERS["kimi-k2"].patterns[0]), "isolated"
    )
    for text in SAMPLES:
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == pattern.findall(text)
