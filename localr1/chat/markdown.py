"""Markdown on a terminal while it streams: what has been written is never written again.

Text is held back only while its meaning is open: the first characters of a line, a word, a code
span or formula until it closes, a table until it ends. Where something never closes it turns out to
be plain text. Formulas become Unicode (latex.py). The text must have been made harmless before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from localr1.chat.latex import readable
from localr1.chat.tables import table_lines
from localr1.chat.wrap import WordWrap

BOLD, ITALIC, CODE, DIM = "\x1b[1m", "\x1b[3m", "\x1b[36m", "\x1b[2m"

_PLAIN = re.compile(r"[^\n\\`*_$]+")
# A line of these characters alone could still become any of the blocks below.
_UNDECIDED = re.compile(r"\s*(?:#{1,6}|[-*+_][-*_ ]*|\d{1,9}[.)]?|`+|~+|>)?")
_FENCE = re.compile(r"(\s*)(`{3,}|~{3,})\s*([^`]*)")
_RULE = re.compile(r"\s*([-*_])(?:\s*\1){2,}\s*")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+")
_ITEM = re.compile(r"(\s*)([-*+]|\d{1,9}[.)])\s+")
_QUOTE = re.compile(r"\s{0,3}>\s?")
_TABLE = re.compile(r"\s{0,3}\|")
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_INLINE_LIMIT, _BLOCK_LIMIT = 300, 4000  # characters after which nothing closes any more


class MarkdownStream:
    """`push` pieces of text, `flush` at the end. `width` gives the terminal's columns."""

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self._out = WordWrap(write, width)
        self._width = width
        self._held = ""
        self._read: Callable[[bool], bool] = self._line_start
        self._before = ""  # the character in front of what is held, on this line
        self._line_style = ""
        self._bold = self._italic = False
        self._fence = ""

    def push(self, text: str) -> None:
        """Write what is certain now."""
        self._held += text
        while self._held and self._read(False):
            pass

    def flush(self) -> None:
        """Write what was held back, now that no more text comes."""
        while self._held and self._read(True):
            pass
        self._out.flush()

    # Each reader takes something off `_held`, or returns False: more text must come first.
    # With `last` nothing more comes, and it must take something.

    def _line_start(self, last: bool) -> bool:
        line, newline, _ = self._held.partition("\n")
        open_end = not newline and not last
        if open_end and _UNDECIDED.fullmatch(line):
            return False
        self._before, self._line_style, self._bold, self._italic = "", "", False, False
        if match := _FENCE.fullmatch(line):
            return not open_end and self._open_code(match, len(line + newline))
        if _RULE.fullmatch(line):
            if not open_end:
                self._out.raw("─" * min(self._width() - 1, 40), DIM)
                self._held = self._held[len(line) :]
                self._read = self._inline
            return not open_end
        self._read = self._table if _TABLE.match(line) else self._inline
        if match := _HEADING.match(line):
            self._line_style = BOLD
        elif match := _ITEM.match(line):
            mark = match[2] if match[2][-1] in ".)" else "•"
            self._out.add(f"{match[1]}{mark} ")
            self._out.prefix = " " * (len(match[1]) + len(mark) + 1)
        elif match := _QUOTE.match(line):
            self._out.add("│ ", DIM)
            self._out.prefix = "│ "
        if match:
            self._held = self._held[match.end() :]
        return True

    def _open_code(self, match: re.Match[str], length: int) -> bool:
        self._fence = match[2]
        if match[3].strip():
            self._out.raw(match[3].strip() + "\n", DIM)
        self._held = self._held[length:]
        self._read = self._code
        return True

    def _code(self, last: bool) -> bool:
        """Code comes as it is, up to a line that is its fence."""
        line, newline, rest = self._held.partition("\n")
        if self._before == "" and not newline and not last and not line.strip(" " + self._fence[0]):
            return False
        closes = line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0])
        if self._before == "" and closes:
            self._held, self._read = rest, self._line_start
            return True
        self._out.raw(line + newline, CODE)
        self._before = "" if newline else "x"
        self._held = rest
        return True

    def _table(self, last: bool) -> bool:
        """Rows are held until a line that is none."""
        lines = self._held.split("\n")
        n = next((i for i, line in enumerate(lines) if not _TABLE.match(line)), len(lines))
        undecided = n == len(lines) or (n == len(lines) - 1 and not lines[n].strip())
        if undecided and not last and len(self._held) < _BLOCK_LIMIT:
            return False
        drawn = table_lines(lines[:n], self._cell, self._width())
        if drawn is None:  # no table after all, or one too wide: its rows as text
            self._read = self._inline
            return True
        self._out.raw("\n".join(drawn))
        self._held = "".join("\n" + line for line in lines[n:])
        self._read = self._inline
        return True

    def _cell(self, markdown: str) -> str:
        parts: list[str] = []
        inner = MarkdownStream(parts.append, lambda: 1 << 30)
        inner._read = inner._inline
        inner.push(markdown)
        inner.flush()
        return "".join(parts)

    def _inline(self, last: bool) -> bool:
        if match := _PLAIN.match(self._held):
            return self._take(match.end(), match[0])
        char = self._held[0]
        if char == "\n":
            self._out.line_break()
            self._held, self._read = self._held[1:], self._line_start
            return True
        if char == "`":
            return self._code_span(last)
        if char == "$":
            return self._dollar(last)
        return self._backslash(last) if char == "\\" else self._emphasis(last)

    def _take(self, length: int, shown: str, style: str = "") -> bool:
        """Take `length` characters off; show `shown` for them."""
        bold, italic = BOLD if self._bold else "", ITALIC if self._italic else ""
        self._out.add(shown, self._line_style + bold + italic + style)
        self._before = self._held[length - 1]
        self._held = self._held[length:]
        return True

    def _closing(self, pattern: str, begin: int, last: bool, block: bool = False) -> int | None:
        """Where `pattern` occurs in what is held; -1: it does not come; None: wait for more."""
        match = re.compile(pattern).search(self._held, begin)
        line_end = -1 if block else self._held.find("\n")
        if match and (line_end < 0 or match.start() < line_end):
            at_end = match.end() == len(self._held)  # what follows may yet say otherwise
            return None if at_end and not block and not last else match.start()
        limit = _BLOCK_LIMIT if block else _INLINE_LIMIT
        return -1 if last or line_end >= 0 or len(self._held) > limit else None

    def _code_span(self, last: bool) -> bool:
        run = len(self._held) - len(self._held.lstrip("`"))
        if run == len(self._held) and not last:
            return False
        end = self._closing(rf"(?<!`)`{{{run}}}(?!`)", run, last)
        if end is None:
            return False
        if end < 0:
            return self._take(run, self._held[:run])
        return self._take(end + run, self._held[run:end].strip() or " ", CODE)

    def _dollar(self, last: bool) -> bool:
        if len(self._held) == 1 and not last:
            return False
        if self._held.startswith("$$"):
            return self._formula(2, r"\$\$", last, block=True)
        if self._held[1:2].isspace():
            return self._take(1, "$")
        return self._formula(1, r"(?<=[^\s\\$])\$(?!\d)", last)

    def _backslash(self, last: bool) -> bool:
        follows = self._held[1:2]
        if not follows and not last:
            return False
        if follows in ("(", "["):
            return self._formula(2, r"\\\)" if follows == "(" else r"\\\]", last, follows == "[")
        if self._held.startswith(r"\boxed{"):
            return self._boxed(last)
        if r"\boxed{".startswith(self._held) and not last:
            return False
        escaped = follows != "" and follows in _PUNCTUATION
        return self._take(2, follows) if escaped else self._take(1, "\\")

    def _formula(self, begin: int, closing: str, last: bool, block: bool = False) -> bool:
        end = self._closing(closing, begin, last, block)
        if end is None:
            return False
        if end < 0:
            return self._take(begin, self._held[:begin])
        return self._show_formula(self._held[begin:end], end + begin, block)

    def _show_formula(self, source: str, length: int, block: bool = False) -> bool:
        text, style = readable(source), BOLD if r"\boxed" in source else ""
        if block and self._before == "":
            self._out.raw("\n".join(f"  {line}" for line in text.split("\n")), style)
            return self._take(length, "")
        return self._take(length, text.replace("\n", "; "), style)

    def _boxed(self, last: bool) -> bool:
        depth = 0
        for at, char in enumerate(self._held):
            depth += (char == "{") - (char == "}")
            if char == "}" and depth == 0:
                return self._show_formula(self._held[: at + 1], at + 1)
        if last or len(self._held) > _INLINE_LIMIT:
            return self._take(1, "\\")
        return False

    def _emphasis(self, last: bool) -> bool:
        """A run of stars or underscores: emphasis, or the characters themselves."""
        char = self._held[0]
        run = len(self._held) - len(self._held.lstrip(char))
        follows = self._held[run : run + 1]
        if not follows and not last:
            return False
        strong, light = run >= 2, run % 2 == 1
        closes = self._before.strip() and (self._bold or not strong) and (self._italic or not light)
        inside_word = self._before.isalnum() and follows.isalnum()
        if run > 3 or not (closes or (follows.strip() and not inside_word)):
            return self._take(run, char * run)
        if not closes and not strong:
            end = self._closing(rf"(?<=[^\s{re.escape(char)}]){re.escape(char)}", run, last)
            if end is None:
                return False
            if end < 0:
                return self._take(run, char)
        self._take(run, "")
        self._bold, self._italic = self._bold ^ strong, self._italic ^ light
        return True
