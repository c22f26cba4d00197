"""This machine as the planner sees it: measured once, remembered, and what is free looked up anew.

The file lies in the cache folder under a name made of everything that decides the figures. Not
here: how things are measured (offload.hardware, cpu_experts.bandwidth).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil

from localr1.errors import Unsupported
from localr1.events import Progress
from localr1.interrupts import HeldInterrupts
from localr1.settings import cache_folder, models_folder
from offload import gpus, memory
from offload import hardware as facts
from offload.hardware import Gpu, Hardware

if TYPE_CHECKING:
    import numpy as np

Report: TypeAlias = Callable[[Progress], None]

_FORMAT = 4  # of the file, and of what its figures mean
_CACHES = 20  # a working set of so many last-level caches cannot live in them,
_MOST, _PART = 4 << 30, 12  # but it takes no more than this, and than this part of the free RAM,
_TOUCH_SECONDS = 2.0  # and no longer to get: memory that was free for long is slow at first
_READ_SECONDS = 1.0  # of rounds whose median counts: other programs use the memory too
_CHUNK = 64 << 20
_PEAK_SECONDS = 0.5
_ROWS, _COLUMNS, _TOKENS = 1024, 4096, 64  # of the multiplication where there is no VNNI


def hardware(
    remeasure: bool = False,
    report: Report = lambda progress: None,
    threads: int | None = None,
) -> Hardware:
    """This machine with `threads` CPU threads (None: as many as the engine takes by itself).

    Takes up to ten seconds, telling `report`, the first time or with `remeasure`; milliseconds
    after that. Raises Unsupported when LOCALR1_ISA asks for what the CPU lacks.
    """
    folder, seen = models_folder(), gpus.look()
    key = _fingerprint(folder, seen, threads)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache_folder() / f"hardware-{digest}.json"
    known = None if remeasure else _remembered(path, key)
    if known is None:
        known = _measured(folder, threads, report)
        _remember(path, key, known)
    return facts.refreshed(known, seen, folder)


def _fingerprint(folder: Path, seen: tuple[Gpu, ...], threads: int | None) -> dict[str, Any]:
    """All that the figures depend on, as JSON."""
    limits = [place / "cpu.max" for kind, place in memory.cgroup_folders() if kind == 2]
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "format": _FORMAT,
        "numba": version("numba"),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cpus": sorted(allowed),
        "cpu_limits": [path.read_text() for path in limits if path.is_file()],
        "ram": int(psutil.virtual_memory().total),
        "gpus": [[gpu.name, gpu.total, gpu.driver] for gpu in seen],
        "threads": threads,
        "isa": os.environ.get("LOCALR1_ISA", ""),
        "models": str(folder),
    }


def cpu_name() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _remembered(path: Path, key: dict[str, Any]) -> Hardware | None:
    """What the file holds about this machine; None when it holds nothing, or something else."""
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["fingerprint"] != key:
            return None
        known = facts.from_json(held["hardware"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if len(known.gpus) == len(key["gpus"]) else None


def _remember(path: Path, key: dict[str, Any], measured: Hardware) -> None:
    text = json.dumps({"fingerprint": key, "hardware": facts.to_json(measured)}, indent=1)
    # A folder that nobody can write to costs the next start its seconds, and no more than that.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            try:
                file.write(text)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise


def _measured(folder: Path, threads: int | None, report: Report) -> Hardware:
    import cpu_experts
    from cpu_experts import cpu

    try:
        isa = _tier()
    except cpu_experts.UnsupportedISA as error:
        raise Unsupported(str(error), "unset LOCALR1_ISA to let the processor choose") from error
    before = cpu_experts.get_threads()
    cpu_experts.set_threads(threads)
    probes = facts.Probes(
        threads=cpu_experts.get_threads(),
        cores=len(cpu.physical_cores()),
        isa=isa,
        ram_bandwidth=_ram_bandwidth,
        int8_ops=_portable_peak if isa == "portable" else _vnni_peak,
    )

    def tell(stage: str, done: int, total: int) -> None:
        report(Progress(stage, done, total, "steps"))
        held.check()

    try:
        with HeldInterrupts() as held:  # some of what measures is compiled first: engine/load.py
            return facts.measured(folder, probes, tell)
    finally:
        cpu_experts.set_threads(before)


def _tier() -> str:
    """The CPU kernels' tier, and what more a plan wants to know of the CPU."""
    import cpu_experts
    from cpu_experts import amx, cpu

    if amx.in_use():
        return facts.AMX
    tier = cpu_experts.tier()
    return facts.ZEN if tier == "avx512_vnni" and cpu.is_zen() else tier


def _ram_bandwidth() -> float:
    """Bytes/second of prefetched reads by the threads of the pool: the better of two pieces of
    memory, since the first one that a process gets may be slow for as long as it lives.
    """
    return max(_read_speed() for _ in range(2))


def _read_speed() -> float:
    """Of one piece of memory, the median of many rounds."""
    import cpu_experts
    from cpu_experts import cpu
    from cpu_experts.bandwidth import best_way, read_seconds

    room = memory.available_bytes() // _PART
    data = _touched(min(_CACHES * cpu.last_cache_bytes(), _MOST, room), cpu_experts.get_threads())
    read_seconds(data[:_CHUNK])  # the workers come up
    way = best_way(data)
    until, took = time.monotonic() + _READ_SECONDS, [read_seconds(data, way)]
    while time.monotonic() < until:
        took.append(read_seconds(data, way))
    return data.nbytes / statistics.median(took)


def _touched(wanted: int, threads: int) -> np.ndarray:
    """Memory of `wanted` bytes that is really there, or as much as we get within the time.

    Several threads touch it, so that it lies on all NUMA nodes.
    """
    import numpy as np

    data = np.empty(max(wanted // _CHUNK, 1) * _CHUNK, np.uint8)
    until = time.monotonic() + _TOUCH_SECONDS

    def touch(start: int) -> int:
        if start and time.monotonic() > until:
            return 0
        data[start : start + _CHUNK].fill(1)
        return _CHUNK

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(touch, range(0, len(data), _CHUNK)))
    return data[: sum(done)]


def _vnni_peak() -> float:
    from cpu_experts.bandwidth import vnni_operations_per_second

    return vnni_operations_per_second(_PEAK_SECONDS)


def _portable_peak() -> float:
    """Operations/second of a Q8_0 multiplication that fits the caches."""
    import numpy as np

    import cpu_experts

    blocks = np.zeros(_ROWS * _COLUMNS // 32 * 34, np.uint8)  # 32 values and their scale
    weights = cpu_experts.QuantTensor("Q8_0", (_ROWS, _COLUMNS), (blocks,))
    x = np.ones((_TOKENS, _COLUMNS), np.float32)
    cpu_experts.matmul(x, weights)  # compiled or loaded
    until, least = time.monotonic() + _PEAK_SECONDS, float("inf")
    while (now := time.monotonic()) < until:
        cpu_experts.matmul(x, weights)
        least = min(least, time.monotonic() - now)
    return 2 * _TOKENS * _ROWS * _COLUMNS / least
