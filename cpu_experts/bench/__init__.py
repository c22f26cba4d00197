"""Measure kernels against limits taken in the same rounds: rows for a card, no printing.

Decode is some MoE layers of R1's shape for one token, over experts that lie further apart than any
cache keeps them, in one compiled call as a token makes them: Python's code is not in the caches
between layers, and would be a tenth of a layer's time on many cores. Its limit is reading as many
bytes, by the number of threads that reads them fastest. Prefill is 512 tokens through one gate
matrix; its limit is the VNNI peak. Between the two, 8 tokens that take the same 8 experts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cpu_experts.activations import Activations
from cpu_experts.bandwidth import read_limit, vnni_operations_per_second, ways_by_threads
from cpu_experts.bank import ExpertBank
from cpu_experts.cpu import last_cache_bytes, tier
from cpu_experts.formats import FLOAT, FORMATS
from cpu_experts.matmul import matmul
from cpu_experts.moe import moe_forward
from cpu_experts.pool import get_threads
from cpu_experts.tensor import QuantTensor
from cpu_experts.token_program import Row, TokenProgram

HIDDEN, INTER, SLOTS = 7168, 2048, 8  # R1's experts
LAYERS = 8  # of a round of decode, if the memory holds twice as many
PREFILL_TOKENS, FEW_TOKENS = 512, 8
CACHES = 20  # a working set this many times the last cache cannot live in it
_FLOATS = ("F32", "F16", "BF16")  # each is filled in its own way, all other formats in one
MOST = 1.02  # a share above this means that the limit was measured badly


def working_set() -> int:
    """Bytes of weights: 20 last caches, or half of the free RAM if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1 << 30, min(CACHES * last_cache_bytes(), free // 2))


def filled_memory(n_bytes: int, name: str = "Q8_0") -> np.ndarray:
    """New memory with ordinary numbers of the format `name`: see `fill`. uint8 `[n_bytes]`."""
    memory = np.empty(n_bytes, dtype=np.uint8)
    fill(memory, name)
    return memory


def fill(memory: np.ndarray, name: str) -> None:
    """Fill uint8 `memory` with ordinary numbers of the format `name`.

    Arithmetic on subnormal numbers takes many times as long.
    """
    pattern = _pattern(name)
    for start in range(0, memory.size, pattern.size):
        part = memory[start : start + pattern.size]
        part[:] = pattern[: part.size]


def _pattern(name: str) -> np.ndarray:
    """Floats as weights are; or bytes below 56: whatever they are as a float16 scale, it is a small
    number. uint8 `[2**24]`.
    """
    rng, size = np.random.default_rng(0), 1 << 24
    if name not in _FLOATS:
        return rng.integers(0, 56, size, dtype=np.uint8)
    floats = rng.normal(0, 0.02, size // 4).astype(np.float32)
    if name == "F32":
        return floats.view(np.uint8)
    halves = floats.astype(np.float16) if name == "F16" else floats.view(np.uint16)[1::2]
    return np.tile(halves, 2).view(np.uint8)


def memories(formats: Iterable[str], n_bytes: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each format with memory that is filled for it: the same each time, uint8 `[n_bytes]`."""
    memory, before = np.empty(n_bytes, dtype=np.uint8), ""
    for name in formats:
        if not before or (name != before and {name, before} & {*_FLOATS}):
            fill(memory, name)
        before = name
        yield name, memory


def huge_share(memory: np.ndarray) -> float:
    """The share of `memory` that lies in huge pages; 0 where the system does not say.

    Memory that this process fills gets them where the kernel is asked to or does so anyway, as
    weights that are owned do. Those of a mapped file lie in small pages, and are read slower.
    """
    address, inside, found = int(memory.ctypes.data), False, 0
    with suppress(OSError):
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split(maxsplit=1)[0]
            if not head.endswith(":"):
                first, last = (int(part, 16) for part in head.split("-"))
                inside = first < address + memory.nbytes and last > address
            elif inside and head == "AnonHugePages:":
                found += int(line.split()[1]) << 10
    return min(1.0, found / memory.nbytes)


def make_bank(name: str, memory: np.ndarray) -> ExpertBank:
    """As many experts of R1's shape as the memory holds."""
    weights = FORMATS[name]
    wide, narrow = weights.row_bytes(HIDDEN) * INTER, weights.row_bytes(INTER) * HIDDEN
    experts = memory.nbytes // (2 * wide + narrow)
    if experts < SLOTS:
        raise ValueError(f"{SLOTS} {name} experts need {SLOTS * (2 * wide + narrow)} bytes")
    ends = np.cumsum([wide * experts, wide * experts, narrow * experts])
    gate, up, down = np.split(memory[: ends[-1]], ends[:-1])
    tiles = -(-INTER // 128) * -(-HIDDEN // 128)
    scales = (np.ones((experts, tiles), dtype=np.float32),) if name == "FP8_E4M3" else ()
    shape = (experts, INTER, HIDDEN)
    return ExpertBank(
        QuantTensor(name, shape, (gate,), scales),
        QuantTensor(name, shape, (up,), scales),
        QuantTensor(name, (experts, HIDDEN, INTER), (down,), scales),
    )


def _timed(call: Any, *args: Any) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def _row(name: str, phase: str, tokens: int, values: list[float], limits: list[float]) -> dict:
    shares = [value / limit for value, limit in zip(values, limits, strict=True)]
    quarters = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 3
    return {
        "format": name,
        "phase": phase,
        "tokens": tokens,
        "threads": get_threads(),
        "value": round(statistics.median(values) / 1e9, 2),
        "unit": "GB/s" if phase == "decode" else "GOP/s",
        "limit": round(statistics.median(limits) / 1e9, 2),
        "share": round(statistics.median(shares), 3),
        "spread": [round(quarters[0], 3), round(quarters[2], 3)],
        "rounds": len(shares),
    }


def decode_program(bank: ExpertBank, layers: range) -> TokenProgram:
    """One token through layers of 8 experts each, as a token of a model passes them."""
    program = TokenProgram()
    x = np.random.default_rng(1).normal(0, 1, HIDDEN).astype(np.float32)
    weights = program.array(np.full(SLOTS, 1 / SLOTS, dtype=np.float32))
    out, place = program.row("out", HIDDEN), program.array(x)
    for layer in layers:
        ids = program.array(np.arange(SLOTS, dtype=np.int32) + SLOTS * layer)
        program.experts(bank, Row("x", place, HIDDEN), ids, weights, SLOTS, out)
    return program


def decode_row(name: str, memory: np.ndarray, seconds: float) -> dict[str, Any]:
    """One token through layers of 8 experts, each round beside a read of as many bytes."""
    bank = make_bank(name, memory)
    layers, n_bytes = bank.n_experts // SLOTS, bank.nbytes // bank.n_experts * SLOTS
    together = max(1, min(LAYERS, layers // 2))
    rounds = [
        decode_program(bank, range(first, first + together))
        for first in range(0, layers - together + 1, together)
    ]
    n_bytes *= together
    rounds[0].run()
    ways = ways_by_threads(memory)
    values: list[float] = []
    limits: list[dict[int, float]] = []
    end, turn = time.perf_counter() + seconds, 0
    while not limits or time.perf_counter() < end:
        turn = (turn + 1) % len(rounds)
        values.append(n_bytes / _timed(rounds[turn].run))
        start = (turn + len(rounds) // 2) % len(rounds) * n_bytes
        limits.append(read_limit(memory[start : start + n_bytes], ways))
    by_threads = {n: statistics.median(limit[n] for limit in limits) / 1e9 for n in ways}
    row = _row(name, "decode", 1, values, [max(limit.values()) for limit in limits])
    by_threads = {n: round(speed, 2) for n, speed in by_threads.items()}
    return {**row, "limit_by_threads": by_threads, "huge_pages": round(huge_share(memory), 3)}


def prefill_row(name: str, memory: np.ndarray, seconds: float) -> dict[str, Any]:
    """512 tokens through one gate matrix, each round beside the VNNI peak."""
    gate = make_bank(name, memory).gate
    w = QuantTensor(name, gate.shape[-2:], (gate.parts[0][: gate.rows * gate.row_bytes],))
    x = np.random.default_rng(2).normal(0, 1, (PREFILL_TOKENS, HIDDEN)).astype(np.float32)
    shared = Activations(x)
    matmul(shared, w)
    operations = 2 * PREFILL_TOKENS * w.rows * w.cols
    values: list[float] = []
    limits: list[float] = []
    end = time.perf_counter() + seconds
    while not limits or time.perf_counter() < end:
        limits.append(vnni_operations_per_second())
        values.append(operations / _timed(matmul, shared, w))
    return _row(name, "prefill", PREFILL_TOKENS, values, limits)


def few_tokens_row(name: str, memory: np.ndarray, seconds: float) -> dict[str, Any]:
    """8 tokens that all take the same 8 experts, each round beside the VNNI peak and a read of as
    many bytes. `share` is of the peak, `memory_share` of that read.
    """
    bank = make_bank(name, memory)
    sets, n_bytes = bank.n_experts // SLOTS, bank.nbytes // bank.n_experts * SLOTS
    x = np.random.default_rng(3).normal(0, 1, (FEW_TOKENS, HIDDEN)).astype(np.float32)
    weights = np.full((FEW_TOKENS, SLOTS), 1 / SLOTS, dtype=np.float32)
    first = np.tile(np.arange(SLOTS, dtype=np.int32), (FEW_TOKENS, 1))
    operations = 2 * FEW_TOKENS * SLOTS * 3 * HIDDEN * INTER
    moe_forward(x, first, weights, bank)
    ways = ways_by_threads(memory)
    took: list[float] = []
    peaks: list[float] = []
    reads: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        turn = len(took) % sets
        peaks.append(vnni_operations_per_second())
        took.append(_timed(moe_forward, x, first + SLOTS * turn, weights, bank))
        start = (turn + sets // 2) % sets * n_bytes
        reads.append(max(read_limit(memory[start : start + n_bytes], ways).values()))
    row = _row(name, "prefill", FEW_TOKENS, [operations / spent for spent in took], peaks)
    of_reads = [n_bytes / spent / read for spent, read in zip(took, reads, strict=True)]
    return {**row, "memory_share": round(statistics.median(of_reads), 3)}


def bench_rows(
    formats: Iterable[str], seconds: float, memory_bytes: int
) -> Iterator[dict[str, Any]]:
    """The rows of `bench_kernels`, one as soon as it is measured."""
    for name, memory in memories(formats, memory_bytes):
        yield decode_row(name, memory, seconds)
        if FORMATS[name].activation != FLOAT and tier() == "avx512_vnni":
            yield few_tokens_row(name, memory, seconds)
            yield prefill_row(name, memory, seconds)


def bench_kernels(
    formats: Iterable[str], seconds: float = 5.0, memory_bytes: int = 4 << 30
) -> list[dict[str, Any]]:
    """Decode and prefill of each format in R1's shapes, `seconds` for each.

    A row: format, phase, tokens, threads, value and limit (GB/s or GOP/s, medians), unit, share of
    the limit (median of the rounds), spread (the quartiles of the share), rounds; for decode the
    limit by threads and the share of the weights in huge pages. Prefill of a quantised format, of 8
    tokens (with `memory_share`) and of 512, needs the avx512_vnni tier. Raises ValueError where
    `memory_bytes` holds no 8 experts.
    """
    return list(bench_rows(formats, seconds, memory_bytes))
