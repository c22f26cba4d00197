"""What an answer comes to, and what most of several say."""

from __future__ import annotations

import pytest

from localr1.chat.vote import majority, normal, result_of


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (r"So \boxed{12}, no, $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"**7** is wrong; \boxed{8}", "8"),
        (r"\boxed{unclosed **9**", "9"),
        ("**Answer:** it is **42 apples**", "42 apples"),
        ("It is 1,204 in 2024", "2024"),
        ("-3.5 or 50%", "50%"),
        (r"\boxed{}", None),
        ("nobody knows", None),
        ("", None),
    ],
)
def test_result(answer: str, result: str | None) -> None:
    assert result_of(answer) == result


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("933", "933.0"),
        ("1,204", "1204"),
        ("$5$", "5"),
        (r"\text{Yes}", "yes."),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"10\,000", "10000"),
    ],
)
def test_equal_results(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(("one", "other"), [("1/2", "2"), ("-5", "5"), ("x", "y"), ("1", "1%")])
def test_different_results(one: str, other: str) -> None:
    assert normal(one) != normal(other)


def test_majority() -> None:
    assert majority(["7", "933.0", None, "933"]) == ("933.0", 2)
    assert majority(["7", "8"]) == ("7", 1)  # of equals the first
    assert majority([None, None]) is None
    assert majority(["NaN", "Infinity", "nan"]) == ("NaN", 2)
