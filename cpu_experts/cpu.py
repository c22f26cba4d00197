"""What this CPU can run: instruction tiers, the cores we may use, and the limits set on them.

Tiers are chosen before anything is compiled, because an instruction that the CPU lacks ends the
process without an exception. AMX, AVX2 and AVX-VNNI are further rows of `_NEEDS` for a later day.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

_NEEDS = {
    "avx512_vnni": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "f16c", "fma"),
    "portable": (),
}
TIERS = tuple(_NEEDS)
_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


class UnsupportedISA(ValueError):
    """The tier that LOCALR1_ISA asks for is unknown, or this CPU cannot run it."""


@cache
def features() -> frozenset[str]:
    """The CPU's features by LLVM's names, as far as the operating system lets them be used."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def is_zen() -> bool:
    """Whether this is one of AMD's Zen cores."""
    return str(llvm.get_host_cpu_name()).startswith("znver")


def supports(tier: str) -> bool:
    """True when this CPU runs the tier's kernels."""
    return features().issuperset(_NEEDS[tier])


def tier() -> str:
    """The tier in use: LOCALR1_ISA where it is set, else the best one that this CPU runs."""
    wanted = os.environ.get("LOCALR1_ISA", "").strip().lower()
    if not wanted:
        return next(name for name in TIERS if supports(name))
    if wanted not in _NEEDS:
        raise UnsupportedISA(f"LOCALR1_ISA={wanted} is not a tier; use {' or '.join(TIERS)}")
    if not supports(wanted):
        missing = ", ".join(sorted(set(_NEEDS[wanted]) - features()))
        raise UnsupportedISA(f"this CPU cannot run LOCALR1_ISA={wanted}: it lacks {missing}")
    return wanted


def _parse_cpu_list(text: str) -> set[int]:
    """`0-3,8` as {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _allowed_cpus() -> set[int]:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores() -> list[int]:
    """One allowed CPU number per physical core; on hybrid CPUs the performance cores only."""
    allowed = _allowed_cpus()
    try:
        fast = allowed & _parse_cpu_list(Path("/sys/devices/cpu_core/cpus").read_text())
    except OSError:
        fast = set()
    cores, seen = [], set()
    for cpu in sorted(fast or allowed):
        if cpu in seen:
            continue
        cores.append(cpu)
        seen.add(cpu)
        try:
            siblings = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            continue
        seen.update(_parse_cpu_list(siblings))
    return cores


def cpu_quota() -> float | None:
    """CPUs' worth of time that the cgroup grants, or None where it sets no limit."""
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (_CGROUPS / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUPS / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def default_threads() -> int:
    """Physical cores we may use, no more than the cgroup's quota pays for."""
    cores = len(physical_cores())
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


def last_cache_bytes(cpus: Path = _CPUS) -> int:
    """The last-level caches of all CPUs together; 32 MiB where the system does not say."""
    sizes = {}
    for level in cpus.glob("cpu[0-9]*/cache/index3"):
        with suppress(OSError, ValueError):
            text = (level / "size").read_text().strip()
            unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
            shared = (level / "shared_cpu_list").read_text()
            sizes[shared] = int(text.rstrip("KMG")) << unit
    return sum(sizes.values()) or 32 << 20
