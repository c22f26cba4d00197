"""How fast RAM is read, in rounds beside what is measured: a machine's speed changes by the second.

Not here: the reads themselves (cpu_experts/bandwidth.py).
"""

from __future__ import annotations

import statistics

import numpy as np

from cpu_experts.bandwidth import read_limit, read_seconds, ways_by_threads
from cpu_experts.bench import CACHES
from cpu_experts.cpu import last_cache_bytes


class ReadSpeed:
    """Of up to 20 last caches of `memory` (uint8), in the way that is the fastest there.

    With half of the threads it is measured once, here, since that starts other threads.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory[: max(CACHES * last_cache_bytes(), 1 << 28)]
        self.working_set = self._memory.nbytes
        ways = ways_by_threads(self._memory)
        *fewer, all_of_them = read_limit(self._memory, ways).values()
        self._fewer, self._rounds = max(fewer, default=0.0), [all_of_them]
        *_, self._way = ways.values()

    def again(self) -> None:
        """Another round, with all threads."""
        self._rounds.append(self.working_set / read_seconds(self._memory, self._way))

    @property
    def bandwidth(self) -> float:
        """Bytes per second: the median of the rounds, or what fewer threads reached."""
        return max(self._fewer, statistics.median(self._rounds))
