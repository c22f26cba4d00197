"""Writing files whole or not at all, and reading what people attach to a message."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from localr1.errors import USAGE, LocalR1Error

_MAX_BYTES = 32 << 20  # far above what any context holds


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Put `text` into `path`: whoever looks, at any time, sees the old content or the new one.

    A pipe or device is written to directly. Raises OSError.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, "utf-8")
        return
    path = path.resolve()  # a link stays a link
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):  # an interrupt behind the replacement
            os.unlink(temporary)
        raise


def check_writable(path: Path) -> None:
    """Find out before hours of work. Raises LocalR1Error: `path` cannot be written."""
    place = path if path.exists() else path.parent
    if path.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "there is no right to, or no folder for it"
        raise LocalR1Error(f"cannot write {path}: {reason}", "give another path", USAGE)


def attachment(path: Path) -> str:
    """A text file as R1 was trained to see one: its name, its content, both marked.

    Raises LocalR1Error: it cannot be read, or is no text.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LocalR1Error(f"{path} is too big for any context", "give a part of it", USAGE)
        raw = path.read_bytes()
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise LocalR1Error(
            f"cannot read {path}: {reason.lower()}", "check the path", USAGE
        ) from None
    text = raw.decode("utf-8", "replace")
    if "\0" in text or text.count("\ufffd") > len(text) // 100:
        raise LocalR1Error(f"{path} is no text file", "turn it into UTF-8 text first", USAGE)
    name = path.name.encode("utf-8", "replace").decode()
    body = text.removesuffix("\n")
    return f"[file name]: {name}\n[file content begin]\n{body}\n[file content end]"
