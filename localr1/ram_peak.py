"""The most RAM that this process has had at a time, as Linux counts it.

Everything counts that is mapped and there: weights, torch and CUDA with their libraries, pages
pinned for a GPU. Not here: what a plan says of it (bench_synthetic.py).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/self")
_PARTS = {"anonymous": "RssAnon", "file": "RssFile", "shared": "RssShmem"}


def forget() -> None:
    """Count from here on; where the system does not allow that, from the program's start."""
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def peak() -> int | None:
    """Bytes; None where the system does not say."""
    return _status().get("VmHWM")


def now() -> dict[str, int]:
    """What is held now, in bytes: `anonymous` memory, pages of a `file`, and `shared` memory, which
    is how some drivers count what they pin.
    """
    found = _status()
    return {name: found[key] for name, key in _PARTS.items() if key in found}


def _status() -> dict[str, int]:
    with suppress(OSError):
        lines = (_PROC / "status").read_text().splitlines()
        words = [line.split() for line in lines if line.endswith(" kB")]
        return {name.rstrip(":"): int(size) << 10 for name, size, _ in words}
    return {}
