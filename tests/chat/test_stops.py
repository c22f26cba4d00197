"""Stop strings cut at the same place however the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localr1.chat.stops import StopStrings, partial_suffix


def cut(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stream = StopStrings(stops)
    text = "".join(stream.push(piece) for piece in pieces) + stream.flush()
    return text, stream.hit


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("one\n\ntwo", ["\n\n"], ("one", True)),
        ("one\ntwo", ["\n\n"], ("one\ntwo", False)),
        ("aaab", ["aab"], ("a", True)),
        ("xabcd", ["bc", "abcd"], ("xa", True)),  # the first to be complete
        ("xabc", ["bc", "abc"], ("x", True)),  # the longer of two that end together
        ("stop", [], ("stop", False)),
        ("stop", [""], ("stop", False)),
        ("ends with a part", ["part!"], ("ends with a part", False)),
    ],
)
def test_cut(text: str, stops: list[str], want: tuple[str, bool]) -> None:
    assert cut([text], stops) == want
    assert cut(list(text), stops) == want


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_cutting_changes_nothing(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert cut(pieces, stops) == cut([text], stops) == cut(list(text), stops)
    shown, hit = cut(pieces, stops)
    assert not any(stop in shown for stop in stops)
    assert hit == any(stop in text for stop in stops)


def test_partial_suffix_is_the_longest() -> None:
    assert partial_suffix("abab", ["ababx"]) == 4
    assert partial_suffix("abab", ["abab"]) == 2  # a whole one is not a partial one
    assert partial_suffix("abc", ["x"]) == 0
