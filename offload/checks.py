"""What a machine may refuse to residency, what happens then, and what would help.

Every row is made by a small function of what was found, so that all answers can be tested on one
machine; `checks` asks this one. Not here: the fallbacks (offload.mapped, offload.owned).
"""

from __future__ import annotations

import mmap
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from offload import syscalls
from offload.hardware import count_in_list, numa_nodes
from offload.memory import cgroup_folders, room_in

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_RELEASE = Path("/proc/sys/kernel/osrelease")
_STATUS = Path("/proc/self/status")
_GIB = 1 << 30


class Check(NamedTuple):
    """One row: what was looked for, what was found, what should be ("": nothing in particular).

    `hint` says what would help ("": all is well), `missing` that it does not work without.
    """

    name: str
    found: str
    needed: str = ""
    hint: str = ""
    missing: bool = False


def checks(file: Path | None = None) -> list[Check]:
    """All rows for this machine; O_DIRECT is asked of the file system that holds `file`."""
    rooms = [room_in(folder, version) for version, folder in cgroup_folders()]
    rows = [
        huge_pages(_text(_HUGE_PAGES)),
        populate(_can_populate()),
        memory_limit(min((room for room in rooms if room is not None), default=None)),
        memory_lock(_lock_limit()),
        numa(numa_nodes(), _text(_STATUS)),
        wsl(_text(_RELEASE)),
    ]
    return rows if file is None else [*rows, direct_reads(_can_read_directly(file))]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def huge_pages(setting: str) -> Check:
    """`setting`: the kernel's file, e.g. "always [madvise] never"; empty where there is none."""
    chosen = re.search(r"\[(\w+)\]", setting)
    found = chosen[1] if chosen else "not available"
    hint = ""
    if found not in ("always", "madvise"):
        hint = f"owned residency uses small pages; as root: echo madvise > {_HUGE_PAGES}"
    return Check("transparent huge pages", found, "always or madvise", hint)


def populate(works: bool) -> Check:
    """`works`: whether the kernel has MADV_POPULATE_READ."""
    hint = "" if works else "mapped residency reads files instead; Linux 5.14 has the call"
    return Check("populating mapped files", "yes" if works else "no", "yes", hint)


def direct_reads(works: bool) -> Check:
    """`works`: whether the file system takes O_DIRECT."""
    hint = "" if works else "owned residency reads through the page cache and empties it behind"
    return Check("reading past the page cache", "yes" if works else "no", "yes", hint)


def memory_limit(room: int | None) -> Check:
    """`room`: bytes that the tightest cgroup leaves, None without a limit."""
    name, needed = "memory limit of the cgroup", "none"
    if room is None:
        return Check(name, "none", needed)
    hint = "a mapped model counts against it too; raise it to hold model and context"
    return Check(name, f"{room / _GIB:.1f} GiB left", needed, hint)


def memory_lock(limit: int | None) -> Check:
    """`limit`: bytes that a user may lock in RAM, None without a limit."""
    found = "none" if limit is None else f"{limit / (1 << 20):,.1f} MiB"
    return Check("memory lock limit", found, "any: nothing is locked")


def numa(nodes: int, status: str) -> Check:
    """`nodes` hold memory; `status`: /proc/self/status, which says whose this process may use."""
    if nodes == 1:
        return Check("NUMA nodes", "1")
    allowed = re.search(r"^Mems_allowed_list:\s*(\S+)", status, re.MULTILINE)
    usable = count_in_list(allowed[1]) if allowed else nodes
    found = f"{nodes}, memory of {usable} allowed"
    hint = "a mapped model lies where it was first read: start with `numactl --interleave=all`"
    if usable < nodes:
        hint = "this process is bound (numactl, a cpuset); the other nodes' memory stays unused"
    return Check("NUMA nodes", found, "", hint)


def wsl(release: str) -> Check:
    """`release`: the kernel's name for itself."""
    if "microsoft" not in release.lower():
        return Check("WSL2", "no")
    hint = "it gets half of the RAM unless .wslconfig says more; keep models off /mnt/c, it is slow"
    return Check("WSL2", "yes", "", hint)


def _lock_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


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
