"""The splitter gives the same thought and answer wherever the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localr1.chat.think import CLOSE, OPEN, ThinkSplitter
from localr1.events import Content, Reasoning

CASES = {
    # text, in_reasoning: thought, answer
    ("Hm.\n</think>\n\nYes", True): ("Hm.\n", "Yes"),
    ("<think>\nHm.\n</think>\n\nYes", False): ("Hm.\n", "Yes"),
    ("<think>\nHm</think>Yes", True): ("Hm", "Yes"),  # the template and the model both open it
    ("\n\n<think>a</think>\n b", False): ("a", " b"),
    ("no tags at all", False): ("", "no tags at all"),
    ("never closed </thin", True): ("never closed </thin", ""),
    ("</think>\n\nYes", True): ("", "Yes"),
    ("</think>Yes", False): ("", "Yes"),
    ("\n</think>\n", True): ("", ""),
    ("a</think>use <think> and </think>", True): ("a", "use <think> and </think>"),
    ("say <think> twice</think>b", True): ("say <think> twice", "b"),
    ("hi <think>x</think>", False): ("", "hi <think>x</think>"),
    ("a << b </ c </think>d", True): ("a << b </ c ", "d"),
    ("</</think>x", True): ("</", "x"),
    ("", True): ("", ""),
    ("\n\n", False): ("", ""),
    ("<thin", False): ("", "<thin"),
}


def split(pieces: list[str], in_reasoning: bool, thinks: bool = True) -> tuple[str, str]:
    """Thought and answer, checked to come in that order."""
    splitter = ThinkSplitter(in_reasoning, thinks)
    events = [event for piece in pieces for event in splitter.push(piece)] + splitter.flush()
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[Reasoning, Content].index)
    assert all(event.text for event in events)
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    return thought, "".join(event.text for event in events if isinstance(event, Content))


@pytest.mark.parametrize(("text", "in_reasoning"), CASES)
def test_all_cuts_in_two_and_three_and_single_characters(text: str, in_reasoning: bool) -> None:
    want = CASES[text, in_reasoning]
    assert split(list(text), in_reasoning) == want
    for i, j in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert split([text[:i], text[i:j], text[j:]], in_reasoning) == want


def test_a_model_that_never_thinks_has_only_answers() -> None:
    for text, _ in CASES:
        assert split(list(text), False, thinks=False) == ("", text)


def test_every_way_to_cut_a_text() -> None:
    text = "a</think>\nb"  # 11 characters: 1,024 ways
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        pieces, begin = [], 0
        for end, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[begin:end])
                begin = end
        assert split([*pieces, text[begin:]], True) == ("a", "b")


bits = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "think>", "\n", " ", "a", "思"]), max_size=12
)


@given(bits, bits, st.booleans())
def test_cutting_changes_nothing(words: list[str], tail: list[str], in_reasoning: bool) -> None:
    text = "".join(words + tail)
    whole = split([text], in_reasoning)
    assert split(words + tail, in_reasoning) == whole
    assert split(list(text), in_reasoning) == whole


@given(bits)
def test_only_a_possible_tag_is_held_back(words: list[str]) -> None:
    splitter, pushed, shown = ThinkSplitter(True), "x", "x"
    splitter.push("x")
    for word in words:
        pushed += word
        shown += "".join(event.text for event in splitter.push(word))
        if CLOSE in pushed:
            break
        held = pushed.removeprefix(shown)
        assert pushed == shown + held
        assert held == "" or CLOSE.startswith(held)


def test_in_reasoning_follows_the_text() -> None:
    splitter = ThinkSplitter(False)
    splitter.push("<think>")
    assert splitter.in_reasoning
    splitter.push("a</think>")
    assert not splitter.in_reasoning
