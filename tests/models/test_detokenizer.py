"""The stream of text: never half a character, and in the end what decoding the whole gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from localr1.models.tokenizer import Detokenizer, Tokenizer
from tests.models.samples import TINY, texts

TOKENIZER = Tokenizer.from_folder(TINY)
# byte tokens, so that any sequence of bytes can be spelt, valid UTF-8 or not
BYTE_TOKENS = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.n_vocab)}


def pushes(ids: list[int]) -> list[str]:
    stream = Detokenizer(TOKENIZER)
    return [*(stream.push(token) for token in ids), stream.flush()]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, TOKENIZER.n_vocab - 1), max_size=40))
def test_any_ids_give_the_text_of_the_whole(ids: list[int]) -> None:
    assert "".join(pushes(ids)) == TOKENIZER.decode(ids)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"\xf0\x9f\x91\x8d", b"\xe4\xbd", b"\xff", b"\xc3", b"\xa9", b"a", b"\xed\xa0"]
        )
    )
)
def test_broken_bytes_become_replacement_characters(parts: list[bytes]) -> None:
    data = b"".join(parts)
    ids = [BYTE_TOKENS[bytes([byte])] for byte in data]
    assert "".join(pushes(ids)) == data.decode("utf-8", "replace")


def test_a_character_comes_out_whole() -> None:
    for text in texts(300, seed=5):
        ids = TOKENIZER.encode(text)
        given_out = pushes(ids)
        assert "".join(given_out) == text
        assert all("\ufffd" not in piece for piece in given_out) or "\ufffd" in text
        so_far = ""
        for piece in given_out:
            so_far += piece
            assert text.startswith(so_far)


def test_bytes_of_one_character_wait_for_the_last() -> None:
    ids = [BYTE_TOKENS[bytes([byte])] for byte in "👍".encode()]
    assert pushes(ids) == ["", "", "", "👍", ""]
    assert pushes(ids[:3]) == ["", "", "", "\ufffd"]


def test_a_stream_starts_anew_after_flush() -> None:
    stream = Detokenizer(TOKENIZER)
    stream.push(BYTE_TOKENS[b"\xe4"])
    assert stream.flush() == "\ufffd"
    assert stream.push(BYTE_TOKENS[b"a"]) == "a"
    assert stream.flush() == ""
