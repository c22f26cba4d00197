"""Breaks streamed words into lines that fit, and never touches a line again.

A word is held back until its end is known. Cells are counted as the terminal does: two for wide
characters, between which a line may break anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len

RESET = "\x1b[0m"


class WordWrap:
    """`add` text without newlines, `line_break` where the text has one, `flush` at the end.

    `prefix` begins each further line of a paragraph: the hanging indent of a list. Styles are the
    SGR sequences that switch them on; each piece switches them off again.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self.prefix = ""
        self._write, self._width = write, width
        self._column = 0
        self._space = ""
        self._word: list[tuple[str, str]] = []  # text and style
        self._cells = 0

    def add(self, text: str, style: str = "") -> None:
        """Write the words that `text` ends; hold the last one."""
        begin = 0
        for at, char in enumerate(text):
            if char == " " or char == "\t":
                self._hold(text[begin:at], style)
                self._place()
                self._space += " " if char == " " else "    "
                begin = at + 1
            elif char > "\u1100" and cell_len(char) == 2:
                self._hold(text[begin:at], style)
                self._place()
                self._hold(char, style)
                begin = at + 1
        self._hold(text[begin:], style)

    def line_break(self) -> None:
        """End the line; the next one begins without a prefix."""
        self._place()
        self._write("\n")
        self._column, self._space, self.prefix = 0, "", ""

    def raw(self, text: str, style: str = "") -> None:
        """Write `text` as it is, its newlines too: lines whose breaks mean something."""
        self._place()
        self._write(self._space)
        self._space = ""
        for n, line in enumerate(text.split("\n")):
            if n:
                self._write("\n")
                self._column = 0
            self._write(_styled(line, style))
            self._column += cell_len(line)

    def flush(self) -> None:
        """Write the word that is held."""
        self._place()

    def _hold(self, text: str, style: str) -> None:
        if not text:
            return
        self._cells += cell_len(text)
        if self._word and self._word[-1][1] == style:
            text = self._word.pop()[0] + text
        self._word.append((text, style))

    def _place(self) -> None:
        if not self._word:
            return
        width = max(self._width(), 1)
        begin = len(self.prefix)
        if self._column > begin and self._column + len(self._space) + self._cells > width:
            self._write("\n" + self.prefix)
            self._column, self._space = begin, ""
        self._write(self._space + "".join(_styled(text, style) for text, style in self._word))
        self._column += len(self._space) + self._cells
        if self._column > width:  # the terminal has broken the line itself
            self._column = (self._column - 1) % width + 1
        self._space, self._word, self._cells = "", [], 0


def _styled(text: str, style: str) -> str:
    return f"{style}{text}{RESET}" if style and text else text
