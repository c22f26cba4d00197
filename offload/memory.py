"""How much memory this process may use, and still may: the machine's, or what its cgroup leaves.

Page cache counts as free, in a cgroup too: the kernel gives it up when memory is asked for. Not
here: what the memory is used for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_PROC = Path("/proc/self")
_NONE = 1 << 62  # from here on a number means "no limit": version 1 writes 2**63 less a page


@dataclass(frozen=True, slots=True)
class _Files:
    """What one cgroup version calls the limit, the use, and the page cache in memory.stat."""

    limits: tuple[str, ...]
    used: str
    cache: tuple[str, ...]


_VERSIONS = {
    1: _Files(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
    2: _Files(("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")),
}


def available_bytes() -> int:
    """Bytes that can still be used without swapping, under every limit on this process."""
    machine = int(psutil.virtual_memory().available)
    rooms = (room_in(folder, version) for version, folder in cgroup_folders())
    return min([machine, *(room for room in rooms if room is not None)])


def total_bytes() -> int:
    """The machine's memory, or the most that a cgroup lets this process have of it."""
    machine = int(psutil.virtual_memory().total)
    limits = (limit_of(folder, version) for version, folder in cgroup_folders())
    return min([machine, *(limit for limit in limits if limit is not None)])


def cgroup_folders(proc: Path = _PROC) -> list[tuple[int, Path]]:
    """(cgroup version, folder) of every memory cgroup that this process is in, parents included.

    `proc` holds `cgroup` and `mountinfo` as /proc/self does.
    """
    try:
        memberships = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return []
    places = _places(memberships)
    found = []
    for line in mounts:
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.partition(" ")
        version = {"cgroup2": 2, "cgroup": 1}.get(kind, 0)
        if version not in places or (version == 1 and "memory" not in _words(options)):
            continue
        root, mount = head.split()[3:5]
        found += [(version, folder) for folder in _upwards(Path(mount), root, places[version])]
    return found


def _words(options: str) -> list[str]:
    return options.replace(" ", ",").split(",")


def _places(memberships: list[str]) -> dict[int, str]:
    """cgroup version -> this process's path in its tree of memory cgroups."""
    places = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places[2] = path
        elif "memory" in controllers.split(","):
            places[1] = path
    return places


def _upwards(mount: Path, root: str, place: str) -> list[Path]:
    """The cgroup's folder and those above it, below the mount of the tree's part `root`.

    In a container the mount may show less of the tree than the path names.
    """
    path = PurePosixPath(place)
    inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
    folder = mount / inside
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def room_in(folder: Path, version: int) -> int | None:
    """Bytes that the cgroup in `folder` leaves; None where it sets no limit."""
    files = _VERSIONS[version]
    limit = limit_of(folder, version)
    used = _number(folder / files.used)
    if limit is None or used is None:
        return None
    return max(0, limit - used + _page_cache(folder / "memory.stat", files.cache))


def limit_of(folder: Path, version: int) -> int | None:
    """Bytes that the cgroup in `folder` may use at most; None where it sets no limit."""
    found = (_number(folder / name) for name in _VERSIONS[version].limits)
    return min((limit for limit in found if limit is not None and limit < _NONE), default=None)


def _number(path: Path) -> int | None:
    """The number in a cgroup file; None for "max", or where the file is missing."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _page_cache(path: Path, names: tuple[str, ...]) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sum(int(values.get(name, 0)) for name in names)
