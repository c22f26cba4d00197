"""Conversations on disk: a folder of JSON files, private to their owner, each written whole.

A file that cannot be read is reported and left alone. Names are checked, so that none leaves the
folder. The cache beside a conversation is snapshot.py's.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localr1.chat.files import write_atomically
from localr1.chat.terminal import clean, count
from localr1.chat.transcript import Message, Transcript
from localr1.errors import USAGE, LocalR1Error
from localr1.settings import state_folder

_FORMAT = 1
_NAME = re.compile(r"\w[\w .+-]{0,63}(?<![ .])")
_KEPT_CACHES = 8  # newest ones; a cache can be made again, and R1's take gigabytes


@dataclass(slots=True)
class Saved:
    """A conversation as it is kept: `model` is what was asked for, a name or a path."""

    name: str
    model: str
    transcript: Transcript = field(default_factory=Transcript)
    created: float = field(default_factory=time.time)  # seconds since 1970, as is `updated`
    updated: float = 0.0


def sessions_folder() -> Path:
    """Where conversations are kept; it need not exist."""
    return state_folder() / "sessions"


def session_file(name: str) -> Path:
    """The file of a name. Raises LocalR1Error for what is no name."""
    if not _NAME.fullmatch(name):
        hint = "letters, digits, spaces and . + - _, 64 at most, a letter or digit first"
        raise LocalR1Error(f"{name!r} cannot be the name of a conversation", hint, USAGE)
    return sessions_folder() / f"{name}.json"


def cache_file(name: str) -> Path:
    """Where snapshot.py keeps the cache of a conversation; it need not exist."""
    return session_file(name).parent / f"{name}.kv"


def index_file(rows: Path) -> Path:
    """What says which tokens a file of cache rows holds."""
    return rows.parent / f"{rows.name}-index"


def new_name() -> str:
    """A name that is free, made of the time."""
    name = base = time.strftime("%Y-%m-%d-%H%M%S")
    for n in range(2, 1000):
        if not session_file(name).exists():
            break
        name = f"{base}-{n}"
    return name


def save(saved: Saved) -> None:
    """Write a conversation, only its owner may read it. Raises OSError."""
    path = session_file(saved.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    saved.updated = time.time()
    fields = {
        "format": _FORMAT,
        "model": saved.model,
        "created": saved.created,
        "updated": saved.updated,
        "system": saved.transcript.system,
        "messages": [asdict(message) for message in saved.transcript.messages],
    }
    write_atomically(path, json.dumps(fields, ensure_ascii=False, indent=1) + "\n", 0o600)


def load(name: str) -> Saved:
    """Read a conversation. Raises LocalR1Error: there is none, or its file is damaged."""
    path = session_file(name)
    try:
        return _parsed(name, json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise LocalR1Error(
            f"no conversation is called {name!r}", "`localr1 sessions` lists them", USAGE
        ) from None
    except OSError as problem:
        raise LocalR1Error(f"cannot read {path}: {problem.strerror}", "check its owner") from None
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise LocalR1Error(
            f"the conversation {name!r} is damaged: {reason}", f"its file is left as it is: {path}"
        ) from None


def _parsed(name: str, fields: Any) -> Saved:
    if fields["format"] != _FORMAT:
        raise ValueError(f"its format is {fields['format']!r}, and this version reads {_FORMAT}")
    messages = [Message(**message) for message in fields["messages"]]
    texts = [fields["model"], *(m.content for m in messages), *(m.reasoning for m in messages)]
    if not all(isinstance(text, str) for text in [*texts, fields["system"] or ""]):
        raise TypeError("a text in it is none")
    times = float(fields["created"]), float(fields["updated"])
    return Saved(name, fields["model"], Transcript(messages, fields["system"]), *times)


def names() -> list[str]:
    """Every conversation there is, the newest first; damaged ones too."""
    found = []
    try:
        with os.scandir(sessions_folder()) as entries:
            for entry in entries:
                name = entry.name.removesuffix(".json")
                if name != entry.name and _NAME.fullmatch(name):
                    found.append((entry.stat().st_mtime, name))
    except FileNotFoundError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def latest() -> str:
    """The newest conversation's name. Raises LocalR1Error: there is none."""
    for name in names():
        return name
    raise LocalR1Error("there is no conversation to resume", "localr1 chat begins one", USAGE)


def listing() -> list[dict[str, Any]]:
    """A row for each conversation, the newest first; of a damaged one only `name` and `error`."""
    rows: list[dict[str, Any]] = []
    for name in names():
        try:
            saved = load(name)
        except LocalR1Error as problem:
            rows.append({"name": name, "error": str(problem)})
            continue
        messages = saved.transcript.messages
        rows.append(
            {
                "name": name,
                "model": saved.model,
                "turns": len(messages) // 2,
                "updated": saved.updated,
                "cache_bytes": sum(path.stat().st_size for path in _files(name) if path.exists())
                - session_file(name).stat().st_size,
                "begins": messages[0].content if messages else "",
            }
        )
    return rows


def listing_text(rows: list[dict[str, Any]]) -> str:
    """The rows for people: name, when, turns, size of the cache, how it begins."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']:20}  {clean(row['error'])}")
            continue
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"]))
        begins = " ".join(clean(row["begins"]).split())[:40]
        facts = f"{count(row['turns'], 'turn'):>8}  {row['cache_bytes'] / 1e6:>8.1f} MB"
        lines.append(f"{row['name']:20}  {when}  {facts}  {clean(row['model'])}  {begins}")
    return "\n".join(lines) if lines else "no conversation is kept yet"


def rename(old: str, new: str) -> None:
    """Give a conversation and its cache another name. Raises LocalR1Error: it is taken."""
    target = session_file(new)
    if target.exists():
        hint = f"`localr1 sessions rm {new}` removes the old one"
        raise LocalR1Error(f"there is a conversation called {new!r}", hint, USAGE)
    for path, to in zip(_files(old), _files(new), strict=True):
        if path.exists():
            os.replace(path, to)


def remove(name: str) -> None:
    """Delete a conversation and its cache. Raises LocalR1Error: there is none."""
    if not session_file(name).exists():
        load(name)
    for path in _files(name):
        path.unlink(missing_ok=True)


def drop_old_caches() -> None:
    """Delete the caches of all conversations but the newest ones."""
    for name in names()[_KEPT_CACHES:]:
        for path in list(_files(name))[1:]:
            path.unlink(missing_ok=True)


def _files(name: str) -> Iterator[Path]:
    """The transcript, then what belongs to the cache: its rows and their index."""
    yield session_file(name)
    yield cache_file(name)
    yield index_file(cache_file(name))
