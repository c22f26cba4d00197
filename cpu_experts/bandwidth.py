"""The limits that kernels are measured against: reading memory, and VNNI's multiplications.

Both run in the same pool as the kernels, so that a share compares like with like on a noisy
machine. The read limit is made of loads with prefetch that do nothing else; the VNNI peak of
independent VPDPBUSD chains in registers.
"""

from __future__ import annotations

import time

import numpy as np
from numba import types

from cpu_experts.cache import c_function, entry, inner
from cpu_experts.cpu import last_cache_bytes
from cpu_experts.memory import atomic_add, load_i64, prefetch_stream
from cpu_experts.pool import ITEM, get_threads, pool_address, run_job, set_threads
from cpu_experts.vectors import dot_bytes, or_, splat_8_bytes, sum_floats, to_floats, xor

# Bytes of a read item, from half a thread's share of what is left down to the least: each new
# stream costs a microsecond or two, and so does waiting for the last one.
_LEAST, _MOST = 1 << 18, 1 << 23
# (streams, bytes between a load and its prefetch): a core may keep more lines on their way from
# several places than from one. What reads fastest counts.
_WAYS = [(streams, ahead) for streams in (4, 2, 1) for ahead in (1024, 512, 2048)]
_TURN = 512  # bytes of a stream's turn
_PAGE, _ROUNDS = 4096, 3
_PROBED = 2  # last caches that a way is tried on: out of a cache another one is the best
_ITEMS, _LOOPS = 64, 1 << 14  # of 16 VPDPBUSD each, in an item
_ADDRESS, _STARTS, _STREAMS, _AHEAD, _SINK = 0, 8, 16, 24, 128
_JOB_WORDS = 32


def _read_item(job, item, slot, scratch):
    """Read one piece; the sum goes where the compiler cannot see that nobody reads it."""
    place = load_i64(job + _STARTS) + 8 * item
    start = load_i64(job + _ADDRESS) + load_i64(place)
    size = (load_i64(place + 8) - load_i64(place)) // load_i64(job + _STREAMS)
    ahead, total = load_i64(job + _AHEAD), 0
    for turn in range(start, start + size, _TURN):
        for stream in range(load_i64(job + _STREAMS)):
            first = turn + stream * size
            for line in range(first, first + _TURN, 64):
                prefetch_stream(line + ahead)
                for word in range(0, 64, 8):
                    total += load_i64(line + word)
    atomic_add(job + _SINK, total)


def _run(items, job, scratch, pool, code):
    run_job(pool, code, job, items, scratch)


_RUN = types.void(*[types.int64] * 5)


def _starts(n_bytes: int, threads: int) -> np.ndarray:
    """Where the pieces of a read begin, and the end of the last one."""
    starts = [0]
    while starts[-1] < n_bytes:
        left = n_bytes - starts[-1]
        size = min(max(left // (2 * threads), _LEAST), _MOST) // _PAGE * _PAGE
        starts.append(min(starts[-1] + size, n_bytes))
    return np.array(starts, dtype=np.int64)


def read_seconds(memory: np.ndarray, way: tuple[int, int] = _WAYS[0]) -> float:
    """Seconds that the pool takes to read `memory` (uint8) once; `way` is one of `best_way`'s."""
    run, code = entry(_run, _RUN), c_function(_read_item, ITEM)
    job, pool = np.zeros(_JOB_WORDS, dtype=np.int64), pool_address()
    starts = _starts(memory.nbytes // _PAGE * _PAGE, get_threads())
    job[_ADDRESS // 8], job[_STARTS // 8] = memory.ctypes.data, starts.ctypes.data
    job[_STREAMS // 8], job[_AHEAD // 8] = way
    start = time.perf_counter()
    run(len(starts) - 1, int(job.ctypes.data), 0, pool, code)
    return time.perf_counter() - start


def best_way(memory: np.ndarray) -> tuple[int, int]:
    """The streams and the prefetch distance with which `memory` is read fastest.

    Of those that are as fast within 2 %, the one with the most streams: where memory is slow for a
    while all are, and another way than that one may miss half of what it gives afterwards.
    """
    part = memory[: max(_PROBED * last_cache_bytes(), 1 << 28)]
    rounds = [[read_seconds(part, way) for way in _WAYS] for _ in range(_ROUNDS)]
    least = [min(times) for times in zip(*rounds, strict=True)]
    return next(way for way, took in zip(_WAYS, least, strict=True) if took <= 1.02 * min(least))


def ways_by_threads(memory: np.ndarray) -> dict[int, tuple[int, int]]:
    """The best way to read with half of the threads in use, and with all: fewer may be faster."""
    wanted, ways = get_threads(), {}
    for threads in sorted({max(1, wanted // 2), wanted}):
        set_threads(threads)
        ways[threads] = best_way(memory)
    return ways


def read_limit(memory: np.ndarray, ways: dict[int, tuple[int, int]]) -> dict[int, float]:
    """Bytes per second of reading `memory` once, for each number of threads; the last one stays."""
    found = {}
    for threads, way in ways.items():
        set_threads(threads)
        read_seconds(memory[:_LEAST], way)  # new workers come up
        found[threads] = memory.nbytes / read_seconds(memory, way)
    return found


@inner
def _chains(loops, seed):
    """`loops` times 16 VPDPBUSD in independent chains; a number that depends on all."""
    u, s = splat_8_bytes(seed), splat_8_bytes(seed >> 1)
    a0, a1, a2, a3, a4, a5, a6, a7 = u, u, u, u, u, u, u, u
    b0, b1, b2, b3, b4, b5, b6, b7 = s, s, s, s, s, s, s, s
    for _ in range(loops):
        a0, a1, a2, a3 = (
            dot_bytes(a0, u, s),
            dot_bytes(a1, u, s),
            dot_bytes(a2, u, s),
            dot_bytes(a3, u, s),
        )
        a4, a5, a6, a7 = (
            dot_bytes(a4, u, s),
            dot_bytes(a5, u, s),
            dot_bytes(a6, u, s),
            dot_bytes(a7, u, s),
        )
        b0, b1, b2, b3 = (
            dot_bytes(b0, u, s),
            dot_bytes(b1, u, s),
            dot_bytes(b2, u, s),
            dot_bytes(b3, u, s),
        )
        b4, b5, b6, b7 = (
            dot_bytes(b4, u, s),
            dot_bytes(b5, u, s),
            dot_bytes(b6, u, s),
            dot_bytes(b7, u, s),
        )
    first = or_(or_(or_(a0, a1), or_(a2, a3)), or_(or_(a4, a5), or_(a6, a7)))
    second = or_(or_(or_(b0, b1), or_(b2, b3)), or_(or_(b4, b5), or_(b6, b7)))
    return np.int64(sum_floats(to_floats(xor(first, second))))


def _multiply_item(job, item, slot, scratch):
    atomic_add(job + _SINK, _chains(_LOOPS, load_i64(job + _ADDRESS) + item))


def vnni_operations_per_second(seconds: float = 0.003) -> float:
    """Byte multiplications and additions per second, all threads; for the avx512_vnni tier.

    The best of rounds over so many seconds: one of them may be shorter than a thread is kept from
    its core. For some 3 ms a core is as slow as the kernel before had made it (docs/kernels.md).
    """
    run, code = entry(_run, _RUN), c_function(_multiply_item, ITEM)
    job, pool = np.zeros(_JOB_WORDS, dtype=np.int64), pool_address()
    end, least = time.perf_counter() + seconds, float("inf")
    while (start := time.perf_counter()) < end:
        run(_ITEMS, int(job.ctypes.data), 0, pool, code)
        least = min(least, time.perf_counter() - start)
    return _ITEMS * _LOOPS * 16 * 64 * 2 / least
