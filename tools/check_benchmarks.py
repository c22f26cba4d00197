"""Is the table of docs/benchmarks.md as new as the kernels? Exit code 1 if not.

    python -m tools.check_benchmarks

The table's first line holds a hash of the kernel sources that it was measured with;
`python -m tests.peers.compare --write` measures anew and writes both.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
KERNELS = ROOT / "cpu_experts"
MARK = "<!-- kernels {} -->"
END = "<!-- end of kernels -->"
_FOUND = re.compile(MARK.format("([0-9a-f]{16})") + "\n(.*?)" + END, re.DOTALL)


def kernel_hash(folder: Path = KERNELS) -> str:
    """16 hexadecimal digits of all Python sources of cpu_experts, names included."""
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        digest.update(source.relative_to(folder).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def write_table(table: str, measured: str, document: Path = DOCUMENT) -> None:
    """Put `table` where the old one is; `measured` is the `kernel_hash` that it was made with."""
    text = document.read_text("utf-8")
    new = f"{MARK.format(measured)}\n{table.strip()}\n{END}"
    if not _FOUND.search(text):
        raise ValueError(f"{document} has no place for the table: no {MARK.format('…')}")
    document.write_text(_FOUND.sub(lambda _: new, text), "utf-8")


def complaint(document: Path = DOCUMENT, folder: Path = KERNELS) -> str | None:
    """What is wrong with the table, or None."""
    found = _FOUND.search(document.read_text("utf-8"))
    if not found:
        return f"{document.name} has no table of the kernels"
    if found[1] != kernel_hash(folder):
        return (
            f"the table in {document.name} is older than the kernels: "
            "python -m tests.peers.compare --write"
        )
    return None


if __name__ == "__main__":
    sys.exit(complaint())
