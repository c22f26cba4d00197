"""Markdown that streams: every cut gives the same text, and nothing is written twice."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localr1.chat.markdown import BOLD, CODE, ITALIC, MarkdownStream

SAMPLE = r"""# Title with **bold**
A *light* and **strong** text with `code x`, 2*3*4, snake_case_name, $5 and $6, 2**3.

- an item that is long enough to wrap, so that the hanging indent is seen by whoever reads
  - nested
1. first
> quoted text that goes on and on and on and on and on and on and on

```python
x = [1, 2]  # **no** markdown here
```
| name | n |
|---|--:|
| one | **2** |
| three | 33 |

\[ \boxed{\frac{1}{2}} \] and \( \alpha \) and $$
\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}
$$
---
天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽
unclosed **bold
unclosed *light and `code and $x
[/foo] list[int] \* \boxed{"""


def render(pieces: list[str], width: int = 50) -> str:
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: width)
    for piece in pieces:
        stream.push(piece)
    stream.flush()
    return "".join(parts)


def plain(styled: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", styled)


def shown(text: str, width: int = 50) -> str:
    return plain(render([text], width))


def styles(styled: str) -> list[tuple[str, str]]:
    """Each visible character with the style it is shown in."""
    found, style = [], ""
    for sgr, char in re.findall(r"(\x1b\[[0-9;]*m)|(\S)", styled):
        style = "" if sgr == "\x1b[0m" else style + sgr
        if char:
            found.append((char, style))
    return found


def test_a_page() -> None:
    assert shown(SAMPLE).splitlines() == [
        "Title with bold",
        "A light and strong text with code x, 2*3*4,",
        "snake_case_name, $5 and $6, 2**3.",
        "",
        "• an item that is long enough to wrap, so that the",
        "  hanging indent is seen by whoever reads",
        "  • nested",
        "1. first",
        "│ quoted text that goes on and on and on and on",
        "│ and on and on and on",
        "",
        "python",
        "x = [1, 2]  # **no** markdown here",
        "name  │  n",
        "──────┼───",
        "one   │  2",
        "three │ 33",
        "",
        "  [1/2] and α and x = 1; y = 2",
        "─" * 40,
        "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏",
        "餘成歲律呂調陽",
        "unclosed bold",
        "unclosed *light and `code and $x",
        "[/foo] list[int] * \\boxed{",
    ]


def test_styles() -> None:
    assert render(["a **b** *c* `d` ***e***"]).split(" ") == [
        "a",
        f"{BOLD}b\x1b[0m",
        f"{ITALIC}c\x1b[0m",
        f"{CODE}d\x1b[0m",
        f"{BOLD}{ITALIC}e\x1b[0m",
    ]
    assert render([r"\boxed{933}"]) == f"{BOLD}[933]\x1b[0m"


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("width", [20, 50, 200])
def test_cutting_changes_nothing(cut: int, width: int) -> None:
    pieces = [SAMPLE[i : i + cut] for i in range(0, len(SAMPLE), cut)]
    assert styles(render(pieces, width)) == styles(render([SAMPLE], width))
    assert plain(render(pieces, width)) == shown(SAMPLE, width)


ALPHABET = st.sampled_from(
    [
        *"* ** _ ` ``` $ $$ \\ \\( \\boxed{ { } [ | - a 1 . 思".split(),
        "\n",
        "\n\n",
        " ",
        "# ",
        "> ",
        "so ",
    ]
)


@example(["$", "*", "$", "1"], 10)
@example(["`", "a", "`", "`"], 10)
@settings(max_examples=300)
@given(st.lists(ALPHABET, max_size=40), st.integers(1, 60))
def test_any_text_any_cut(pieces: list[str], width: int) -> None:
    whole = "".join(pieces)
    assert styles(render(pieces, width)) == styles(render([whole], width))


@given(st.text(max_size=60))
def test_no_letter_is_lost(text: str) -> None:
    """Signs of Markdown go; letters and digits outside of formulas stay, in their order."""
    text = re.sub(r"[\\$\x00-\x09\x0b-\x1f\x7f-\x9f\u0300-\u036f]", " ", text)
    if "```" in text or "~~~" in text:
        return  # the language of a code block stands on a line of its own

    def letters(value: str) -> list[str]:
        return [char for char in value if char.isalnum()]

    assert letters(shown(text, 1 << 20)) == letters(text)


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 to $6 a month",
        "x_1 and x_2",
        "a * b * c",
        "f(*args)",
        "C:\\path\\to",
        "5 > 3",
        "-5 degrees",
        "#hashtag",
        "1.5 litres",
        "a | b",
    ],
)
def test_text_that_only_looks_like_markdown(text: str) -> None:
    assert shown(text) == text


def test_words_come_as_soon_as_they_end() -> None:
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: 80)
    stream.push("The sum")
    assert parts == ["The"]
    stream.push(" is")
    assert "".join(parts) == "The sum"
    stream.flush()
    assert "".join(parts) == "The sum is"


def test_code_comes_as_it_is_written() -> None:
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: 20)
    stream.push("```\nlong = [1, 2, 3, 4, 5, 6, 7")
    assert "6, 7" in "".join(parts)
    stream.push("]\n  ``` is no fence here\n```\nend")
    stream.flush()
    assert plain("".join(parts)) == "long = [1, 2, 3, 4, 5, 6, 7]\n  ``` is no fence here\nend"


def test_a_table_too_wide_or_without_a_rule_stays_text() -> None:
    wide = "| one long cell | another long cell |\n|---|---|\n| x | y |\n"
    assert "| one long cell |" in shown(wide, 20)
    assert shown("| a | b |\nend") == "| a | b |\nend"


def test_what_never_closes_does_not_wait_forever() -> None:
    parts: list[str] = []
    stream = MarkdownStream(parts.append, lambda: 80)
    for _ in range(200):
        stream.push("$$ word ")
        stream.push("`tick \\boxed{ ")
    assert len("".join(parts)) > 500
