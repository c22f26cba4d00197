"""What pool and mailbox cost: a fork and join, a ticket, a busy neighbour, and doing nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import types

from cpu_experts.bank import ExpertBank
from cpu_experts.bench import decode_row
from cpu_experts.cache import c_function, entry
from cpu_experts.mailbox import DONE, TICKET, Mailbox
from cpu_experts.memory import atomic_add, atomic_load, atomic_store, load_i64, store_i64
from cpu_experts.pool import ITEM, get_threads, pool_address, relax, run_job
from cpu_experts.tensor import QuantTensor

_JOBS = 1000
_MANY = types.void(*[types.int64] * 5)


def _meeting_item(job, item, slot, scratch):
    """Wait for the other items: the job needs every thread, and takes as long as the slowest."""
    atomic_add(job, 1)
    waited = 0
    while atomic_load(job) < load_i64(job + 8):
        waited = relax(waited)


def _many_jobs(jobs, items, job, pool, code):
    """`jobs` jobs, one after the other; the sums of all items at `job`."""
    for _ in range(jobs):
        store_i64(job + 8, load_i64(job + 8) + items)
        run_job(pool, code, job, items, 0)


def fork_join_seconds(rounds: int = 50) -> list[float]:
    """Seconds of one job that all threads meet in, from compiled code, per round."""
    run, code, pool = entry(_many_jobs, _MANY), c_function(_meeting_item, ITEM), pool_address()
    if not pool:
        raise ValueError("one thread has no fork and join")
    items, job = get_threads(), np.zeros(8, dtype=np.int64)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(_JOBS, items, int(job.ctypes.data), pool, code)
        found.append((time.perf_counter() - start) / _JOBS)
    return found


def _many_tickets(control, tickets):
    """The asker's side, as a GPU would do it: the last request again and again."""
    first = atomic_load(control + TICKET) + 1
    for ticket in range(first, first + tickets):
        atomic_store(control + TICKET, ticket)
        waited = 0
        while atomic_load(control + DONE) != ticket:
            waited = relax(waited)


def handoff_seconds(rounds: int = 50) -> list[float]:
    """Seconds from a ticket to its answer, for one expert of 32 x 32 weights, per round."""
    weight = QuantTensor("F32", (32, 32), (np.zeros(4096, dtype=np.uint8),))
    box = Mailbox([ExpertBank(weight, weight, weight)], 32, 1, 1)
    ask = entry(_many_tickets, types.void(types.int64, types.int64))
    found = []
    box.start()
    try:
        one = np.ones((1, 1), dtype=np.float32)
        box.wait(box.submit(0, np.zeros((1, 1), np.int32), one, np.ones((1, 32), np.float32)))
        for _ in range(rounds):
            start = time.perf_counter()
            ask(box.address, _JOBS)
            found.append((time.perf_counter() - start) / _JOBS)
    finally:
        box.stop()
    return found


def idle_share(seconds: float = 1.0) -> float:
    """CPU time of this process over `seconds` that begin one second after a job, of one core."""
    fork_join_seconds(1)
    time.sleep(1)
    before = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - before) / seconds


def kept_share(name: str, memory: np.ndarray, seconds: float) -> tuple[float, float]:
    """Decode's share of the read limit alone, and while another process keeps one core busy."""
    alone: float = decode_row(name, memory, seconds)["share"]
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside: float = decode_row(name, memory, seconds)["share"]
    finally:
        busy.kill()
        busy.wait()
    return alone, beside


def pool_rows(memory: np.ndarray, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows: what, threads, value, unit, goal."""
    jobs = fork_join_seconds()
    common = {"phase": "pool", "threads": get_threads()}
    middle, quickest = statistics.median(jobs) * 1e6, min(jobs) * 1e6
    yield {**common, "what": "fork and join", "value": round(middle, 2), "unit": "us", "goal": 1.5}
    yield {**common, "what": "its best", "value": round(quickest, 2), "unit": "us", "goal": 1.5}
    tickets = handoff_seconds()
    middle, quickest = statistics.median(tickets) * 1e6, min(tickets) * 1e6
    yield {**common, "what": "ticket to answer", "value": round(middle, 2), "unit": "us", "goal": 5}
    yield {**common, "what": "its best", "value": round(quickest, 2), "unit": "us", "goal": 5}
    share = 100 * idle_share()
    yield {**common, "what": "idle", "value": round(share, 3), "unit": "% of a core", "goal": 1}
    alone, beside = kept_share("Q4_K", memory, seconds)
    kept = round(100 * beside / alone, 1)
    yield {
        **common,
        "what": "share kept beside a busy process",
        "value": kept,
        "unit": "%",
        "goal": 75,
    }
