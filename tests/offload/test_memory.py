"""What is left under cgroup limits, read from files as kernels and container engines write them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from offload import memory
from offload.memory import available_bytes, cgroup_folders, room_in, total_bytes

GIB = 1 << 30


def proc(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mountinfo)
    return folder


def cgroup(folder: Path, **files: object) -> Path:
    """A cgroup's folder; a double underscore in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


V2_STAT = "anon 100\nfile 900\nactive_file 300\ninactive_file 500\nsock 0"
V1_STAT = "cache 0\nactive_file 7\ntotal_active_file 300\ntotal_inactive_file 500"


def test_v2_in_a_session_scope(tmp_path: Path) -> None:
    mount = tmp_path / "cgroup"
    where = proc(
        tmp_path,
        "0::/user.slice/user-1000.slice/session-2.scope\n",
        f"24 30 0:22 / /proc rw,nosuid shared:12 - proc proc rw\n"
        f"35 24 0:30 / {mount} rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    )
    names = ["user.slice/user-1000.slice/session-2.scope", "user.slice/user-1000.slice"]
    expected = [mount / names[0], mount / names[1], mount / "user.slice", mount]
    assert cgroup_folders(where) == [(2, folder) for folder in expected]


def test_v1_beside_v2_and_a_container_that_shows_less_of_the_tree(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    where = proc(
        tmp_path,
        "9:name=systemd:/docker/ab12\n5:cpu,cpuacct:/docker/ab12\n4:memory:/docker/ab12\n0::/\n",
        f"35 31 0:32 /docker/ab12 {mount} ro,relatime master:18 - cgroup cgroup rw,memory\n"
        "36 31 0:33 /docker/ab12 /sys/fs/cgroup/cpu ro,relatime - cgroup cgroup rw,cpu,cpuacct\n",
    )
    assert cgroup_folders(where) == [(1, mount)]
    hidden = tmp_path / "hidden"  # a namespace: the path is not below the mount's root
    (where / "mountinfo").write_text(f"35 31 0:32 /other {hidden} ro - cgroup cgroup rw,memory\n")
    assert cgroup_folders(where) == [(1, hidden)]


def test_a_system_without_proc(tmp_path: Path) -> None:
    assert cgroup_folders(tmp_path / "nothing") == []


def test_v2_room_counts_page_cache_as_free(tmp_path: Path) -> None:
    files = {"memory__max": 10_000, "memory__current": 1_000, "memory__stat": V2_STAT}
    assert room_in(cgroup(tmp_path, **files), 2) == 10_000 - 1_000 + 800
    assert room_in(cgroup(tmp_path, memory__high=4_000), 2) == 4_000 - 1_000 + 800
    assert room_in(cgroup(tmp_path, memory__max="max", memory__high="max"), 2) is None
    assert room_in(cgroup(tmp_path, memory__max=100), 2) == 0  # more than allowed is in use


def test_v1_room(tmp_path: Path) -> None:
    files = {
        "memory__limit_in_bytes": 10_000,
        "memory__usage_in_bytes": 1_000,
        "memory__stat": V1_STAT,
    }
    assert room_in(cgroup(tmp_path, **files), 1) == 10_000 - 1_000 + 800
    assert room_in(cgroup(tmp_path, memory__limit_in_bytes=(1 << 63) - 4096), 1) is None


def test_a_root_cgroup_sets_no_limit(tmp_path: Path) -> None:
    assert room_in(tmp_path, 2) is None
    assert room_in(tmp_path, 1) is None


def test_the_tightest_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(available=64 * GIB, total=128 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    outer = cgroup(tmp_path, memory__max=8 * GIB, memory__current=GIB)
    inner = cgroup(tmp_path / "inner", memory__max="max", memory__current=GIB)
    monkeypatch.setattr(memory, "cgroup_folders", lambda: [(2, inner), (2, outer)])
    assert available_bytes() == 7 * GIB
    assert total_bytes() == 8 * GIB
    free.available = free.total = GIB
    assert available_bytes() == total_bytes() == GIB


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < available_bytes() <= total_bytes() <= psutil.virtual_memory().total
