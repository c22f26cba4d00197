"""Many steps as one compiled call: a table of functions and their jobs, run without Python between.

A step is a C function `f(job, item, slot, scratch)`, the address of its job and that of the number
of its items. Steps run in order. One with one item runs on the calling thread; the items of another
are shared with the worker pool, and the next step begins when all are done. Sizes and addresses lie
in the jobs from the start; what changes from call to call is read from memory, even the number of
items, so the same table serves every token. program_steps.py has the steps of transformers.

What a program is made of stays alive with it: memory, codes, and whatever is given to `keep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types

from cpu_experts.cache import entry
from cpu_experts.memory import call_item, load_i64
from cpu_experts.pool import pool_address, run_job
from cpu_experts.workspace import WORKSPACE

_FUNCTION, _JOB, _ITEMS = range(3)
_STEP_BYTES = 24


def _run(steps, n_steps, pool, scratch):
    for step in range(steps, steps + n_steps * _STEP_BYTES, _STEP_BYTES):
        function, job = load_i64(step + 8 * _FUNCTION), load_i64(step + 8 * _JOB)
        items = load_i64(load_i64(step + 8 * _ITEMS))
        if items == 1:
            call_item(function, (job, 0, 0, scratch))
        else:
            run_job(pool, function, job, items, scratch)


@cache
def runner() -> Any:
    """`_run`, compiled or loaded once."""
    return entry(_run, types.void(*[types.int64] * 4))


class Program:
    """Steps in the order in which they were added, and the memory that they work in."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int]] = []
        self._table = np.empty(0, dtype=np.int64)
        self._kept: list[Any] = []
        self._buffers: dict[str, tuple[int, int]] = {}
        self._one = self.words([1])

    def keep(self, owner: Any) -> None:
        """Let `owner`, whose memory a step uses, live as long as the program."""
        self._kept.append(owner)

    def array(self, values: np.ndarray) -> int:
        """The address of an array, which lives as long as the program."""
        self.keep(values)
        return int(values.ctypes.data)

    def words(self, values: Sequence[int]) -> int:
        """The address of int64 words with these values, on cache lines of their own."""
        memory = np.zeros(len(values) + 16, dtype=np.int64)
        first = -(int(memory.ctypes.data) // 8) % 8
        memory[first : first + len(values)] = values
        self._kept.append(memory)
        return int(memory.ctypes.data) + 8 * first

    def buffer(self, name: str, nbytes: int) -> int:
        """The address of the buffer of this name, made at its first use. Names are shared on
        purpose: the same few bytes serve every layer and stay in the nearest cache.
        """
        known = self._buffers.get(name)
        if known is None or known[1] < nbytes:
            known = self._buffers[name] = (self.words([0] * ((nbytes + 7) // 8)), nbytes)
        return known[0]

    def add(self, function: int, job: int, items: int = 0) -> None:
        """Append a step; `items` is the address of the number of its items (0: it is one)."""
        self._steps.append((function, job, items or self._one))
        self._table = np.empty(0, dtype=np.int64)

    def run(self) -> None:
        """Run all steps, with the GIL released."""
        if not len(self._table):
            self._table = np.array(self._steps, dtype=np.int64).reshape(-1)
        steps = int(self._table.ctypes.data)
        runner()(steps, len(self._steps), pool_address(), WORKSPACE.scratch)
