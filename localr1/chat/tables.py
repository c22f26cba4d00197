"""A Markdown table, whole, as lines of aligned columns. How cells look is the caller's business."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rich.cells import cell_len

_RULE = re.compile(r"\s*:?-+:?\s*")
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_BAR = " │ "


def table_lines(rows: Sequence[str], inline: Callable[[str], str], width: int) -> list[str] | None:
    """The lines of a table, its header first; None if `rows` are no table or do not fit `width`.

    `inline` turns a cell's Markdown into styled text.
    """
    cells = [_cells(row) for row in rows]
    if len(cells) < 2 or not all(_RULE.fullmatch(cell) for cell in cells[1]):
        return None
    n = len(cells[0])
    right = [cell.strip().endswith(":") and not cell.strip().startswith(":") for cell in cells[1]]
    right += [False] * n
    body = [[inline(cell) for cell in [*row, *[""] * n][:n]] for row in [cells[0], *cells[2:]]]
    widths = [max(_width(row[i]) for row in body) for i in range(n)]
    if sum(widths) + len(_BAR) * (n - 1) > width:
        return None
    lines = [_BAR.join(_padded(c, w, r) for c, w, r in zip(row, widths, right, strict=False))
             for row in body]  # fmt: skip
    return [lines[0], "─┼─".join("─" * w for w in widths), *lines[1:]]


def _cells(row: str) -> list[str]:
    row = row.strip().removeprefix("|")
    if row.endswith("|") and not row.endswith("\\|"):
        row = row[:-1]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)]


def _width(styled: str) -> int:
    return cell_len(_SGR.sub("", styled))


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space
