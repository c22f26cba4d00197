"""Resident workers: threads inside a Numba loop without the GIL, fed through one word in memory.

A job is a C function `f(job, item, slot, scratch)` and a number of items. The counter word holds
(ticket | items | next item): who adds 1 to it owns the item it read, and the job that word names
cannot end before that item is done. So no thread ever waits for one that has taken nothing, and
anything that can write memory (a mailbox, later) can start a job.

Idle workers spin, then yield, then sleep on a futex: an idle process uses no CPU.
"""

from __future__ import annotations

import atexit
import mmap
import os
import platform
import sys
import threading
from typing import Any

import numpy as np
from numba import types

from cpu_experts import cache, cpu
from cpu_experts.cache import inner
from cpu_experts.memory import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_item,
    compare_and_swap,
    load_i64,
    spin_pause,
    store_i64,
)

# Offsets of the state's words, each on cache lines of its own.
COUNTER, DONE, SLEEPERS, WAKE, STOP, OWNER = (128 * i for i in range(6))
FUNCTION, ARGUMENT, THREADS, FUTEX = 768, 776, 784, 792
HOT = 896  # above 0 the workers do not sleep: somebody expects the next job soon
STATE_BYTES = 4096
SCRATCH_BYTES = 1 << 20
_FIELD = (1 << 20) - 1  # items and next item have 20 bits each
MAX_ITEMS = _FIELD // 2
_SPINS, _YIELDS = 1000, 2000
FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98}
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # both for one process only

ITEM = types.void(*[types.int64] * 4)
sched_yield = types.ExternalFunction("sched_yield", types.int32())
syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))


@inner
def _take(state):
    """One item as (item, items), where item >= items says that there is none."""
    word = atomic_load(state + COUNTER)
    if (word & _FIELD) < (word >> 20 & _FIELD):
        word = atomic_add(state + COUNTER, 1)
    return word & _FIELD, word >> 20 & _FIELD


@inner
def _work(state, slot, scratch):
    """Run items until none is left; True when there was one."""
    worked = False
    while True:
        item, items = _take(state)
        if item >= items:
            return worked
        call_item(load_i64(state + FUNCTION), (load_i64(state + ARGUMENT), item, slot, scratch))
        atomic_add(state + DONE, 1)
        worked = True


@inner
def _sleep(state):
    """Wait on the futex, unless work or the end came in between."""
    atomic_add(state + SLEEPERS, 1)
    seen = atomic_load(state + WAKE)
    word = atomic_load(state + COUNTER)
    if (word & _FIELD) >= (word >> 20 & _FIELD) and atomic_load(state + STOP) == 0:
        syscall(load_i64(state + FUTEX), state + WAKE, FUTEX_WAIT, seen & 0xFFFFFFFF, 0, 0, 0)
    atomic_add(state + SLEEPERS, -1)


@inner
def wake(state):
    """Wake the sleeping workers, if any."""
    if atomic_load(state + SLEEPERS) > 0:
        atomic_add(state + WAKE, 1)
        syscall(load_i64(state + FUTEX), state + WAKE, FUTEX_WAKE, 0x7FFFFFFF, 0, 0, 0)


@inner
def relax(waited):
    """A moment of waiting, short at first, then one that lets others run; returns `waited` + 1."""
    if waited < _SPINS:
        spin_pause()
    else:
        sched_yield()
    return waited + 1


def _worker(state, slot, scratch):
    """A worker's whole life."""
    idle = 0
    while atomic_load(state + STOP) == 0:
        if _work(state, slot, scratch):
            idle = 0
            continue
        idle += 1
        if idle < _SPINS:
            spin_pause()
        elif idle < _SPINS + _YIELDS or atomic_load(state + HOT) > 0:
            sched_yield()
        else:
            _sleep(state)
            idle = 0


@inner
def run_job(state, function, job, items, scratch):
    """Run all items of a job and return when they are done; the caller works too, as slot 0.

    `state` 0 means no pool. A pool that another thread is using is not waited for.
    """
    if state == 0 or items < 2 or not compare_and_swap(state + OWNER, 0, 1):
        for item in range(items):
            call_item(function, (job, item, 0, scratch))
        return
    store_i64(state + FUNCTION, function)
    store_i64(state + ARGUMENT, job)
    atomic_store(state + DONE, 0)
    ticket = (atomic_load(state + COUNTER) >> 40) + 1 & 0x3FFFFF
    atomic_store(state + COUNTER, ticket << 40 | items << 20)
    wake(state)
    _work(state, 0, scratch)
    waited = 0
    while atomic_load(state + DONE) < items:
        waited = relax(waited)
    atomic_store(state + OWNER, 0)


@inner
def set_hot(state, change):
    """Add 1 to keep the workers from sleeping (and wake them), -1 to let them."""
    if state != 0:
        atomic_add(state + HOT, change)
        if change > 0:
            atomic_add(state + WAKE, 1)
            syscall(load_i64(state + FUTEX), state + WAKE, FUTEX_WAKE, 0x7FFFFFFF, 0, 0, 0)


@inner
def thread_count(state):
    """Threads that share a job, the caller included."""
    return 1 if state == 0 else load_i64(state + THREADS)


def _stop(state):
    atomic_store(state + STOP, 1)
    atomic_add(state + WAKE, 1)
    syscall(load_i64(state + FUTEX), state + WAKE, FUTEX_WAKE, 0x7FFFFFFF, 0, 0, 0)


_ONE = types.void(types.int64)


class Pool:
    """`threads - 1` workers beside the caller. Memory is mapped once and freed with the process."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._memory = mmap.mmap(-1, STATE_BYTES + threads * SCRATCH_BYTES)
        view = np.frombuffer(self._memory, dtype=np.int64)
        self.address = int(view.ctypes.data)
        view[THREADS // 8] = threads
        view[FUTEX // 8] = FUTEX_NUMBERS[platform.machine()]
        loop = cache.entry(_worker, types.void(*[types.int64] * 3))
        cores = cpu.physical_cores()
        self._workers = [
            threading.Thread(
                target=self._live,
                args=(loop, slot, cores[slot % len(cores)] if threads <= len(cores) else None),
                name=f"cpu_experts-{slot}",
                daemon=True,
            )
            for slot in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    def _live(self, loop: Any, slot: int, core: int | None) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        loop(self.address, slot, self.address + STATE_BYTES + slot * SCRATCH_BYTES)

    def stop(self) -> None:
        """End the workers and wait for them."""
        cache.entry(_stop, _ONE)(self.address)
        for worker in self._workers:
            worker.join()


_LOCK = threading.Lock()
_threads: int | None = None
_pool: Pool | None = None
_address: int | None = None


def pool_address() -> int:
    """The state of the running pool, started where needed; 0 when one thread does the work."""
    return _start() if _address is None else _address


def _start() -> int:
    global _pool, _address
    with _LOCK:
        if _address is None:
            wanted = _threads or cpu.default_threads()
            able = sys.platform == "linux" and platform.machine() in FUTEX_NUMBERS
            _pool = Pool(wanted) if wanted > 1 and able else None
            _address = _pool.address if _pool else 0
        return _address


def running_pool() -> Pool | None:
    """The pool behind `pool_address`, for those who keep that address: it lives as long as this."""
    pool_address()
    return _pool


def stop_pool() -> None:
    """End the workers; the next job starts new ones."""
    global _pool, _address
    with _LOCK:
        if _pool is not None:
            _pool.stop()
        _pool, _address = None, None


def set_threads(threads: int | None) -> None:
    """Use this many threads, or with None the physical cores that limits leave us."""
    global _threads
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    stop_pool()
    _threads = threads


def get_threads() -> int:
    """The threads that the next job will use."""
    return _pool.threads if _pool else (_threads or cpu.default_threads())


def _forget() -> None:
    """In a forked child the workers do not exist: start afresh."""
    global _pool, _address, _LOCK
    _LOCK = threading.Lock()
    _pool, _address = None, None


atexit.register(stop_pool)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
