"""What a machine may refuse to residency, what happens then, and what would help.

Every row is made by a small function of what was found, so that all answers can be tested on one
machine; `checks` asks this one. Not here: the fallbacks (offload.mapped, offload.owned).
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import NamedTuple

from offload import syscalls
from offload.memory import cgroup_folders, room_in

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_GIB = 1 << 30


class Check(NamedTuple):
    """One row: what was looked for, what was found, and what would help ("": all is well)."""

    name: str
    found: str
    hint: str


def checks(file: Path | None = None) -> list[Check]:
    """All rows for this machine; O_DIRECT is asked of the file system that holds `file`."""
    try:
        setting = _HUGE_PAGES.read_text()
    except OSError:
        setting = ""
    rooms = [room_in(folder, version) for version, folder in cgroup_folders()]
    rows = [
        huge_pages(setting),
        populate(_can_populate()),
        memory_limit(min((room for room in rooms if room is not None), default=None)),
    ]
    return rows if file is None else [*rows, direct_reads(_can_read_directly(file))]


def huge_pages(setting: str) -> Check:
    """`setting`: the kernel's file, e.g. "always [madvise] never"; empty where there is none."""
    chosen = re.search(r"\[(\w+)\]", setting)
    found = chosen[1] if chosen else "not available"
    hint = ""
    if found not in ("always", "madvise"):
        hint = f"owned residency uses small pages; as root: echo madvise > {_HUGE_PAGES}"
    return Check("transparent huge pages", found, hint)


def populate(works: bool) -> Check:
    """`works`: whether the kernel has MADV_POPULATE_READ."""
    hint = "" if works else "mapped residency reads files instead; Linux 5.14 has the call"
    return Check("populating mapped files", "yes" if works else "no", hint)


def direct_reads(works: bool) -> Check:
    """`works`: whether the file system takes O_DIRECT."""
    hint = "" if works else "owned residency reads through the page cache and empties it behind"
    return Check("reading past the page cache", "yes" if works else "no", hint)


def memory_limit(room: int | None) -> Check:
    """`room`: bytes that the tightest cgroup leaves, None without a limit."""
    if room is None:
        return Check("memory limit of the cgroup", "none", "")
    hint = "a mapped model counts against it too; raise it to hold model and context"
    return Check("memory limit of the cgroup", f"{room / _GIB:.1f} GiB left", hint)


def _can_populate() -> bool:
    with mmap.mmap(-1, syscalls.PAGE) as page:
        try:
            syscalls.madvise(syscalls.address_of(page), syscalls.PAGE, syscalls.MADV_POPULATE_READ)
        except OSError:
            return False
    return True


def _can_read_directly(file: Path) -> bool:
    try:
        descriptor = syscalls.open_direct(file)
    except OSError:
        return False
    try:
        os.preadv(descriptor, [mmap.mmap(-1, syscalls.PAGE)], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
