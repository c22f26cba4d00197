"""Compile, or load from the cache, what a set of formats needs, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from cpu_experts.cpu import tier
from cpu_experts.formats import FORMATS, UnsupportedFormat
from cpu_experts.kernels.registry import DEQUANT, ROWS, TILES, kernel_address
from cpu_experts.matmul import plain, transposed
from cpu_experts.moe import compiled
from cpu_experts.pool import pool_address


def warmup(formats: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yields (done, total) after each step; UnsupportedFormat names a format that has no kernel.

    Steps are seconds long on the first run and milliseconds after it.
    """
    names = sorted(set(formats))
    for name in names:
        if name not in FORMATS:
            raise UnsupportedFormat(f"no kernel for weight format {name}")
    isa = tier()
    steps: list[Callable[[], object]] = [pool_address, plain, compiled, transposed]
    for name in names:
        for role in (ROWS, TILES, DEQUANT):
            steps.append(partial(kernel_address, FORMATS[name], role, isa))
    yield 0, len(steps)
    for done, step in enumerate(steps, start=1):
        step()
        yield done, len(steps)
