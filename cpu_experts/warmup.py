"""Compile, or load from the cache, what a set of formats needs: on all cores the first time.

Numba compiles one function at a time in a process, so a first run shares the steps with helper
processes; they leave the machine code in the disk cache, from where this process takes it. A mark
in the cache's folder says that a step has been compiled, by whomever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cpu_experts.activations import one_term, two_terms
from cpu_experts.cache import folder_is_shared, use_own_folder
from cpu_experts.cpu import default_threads, tier
from cpu_experts.formats import FORMATS, UnsupportedFormat
from cpu_experts.kernels.registry import DEQUANT, ROWS, TILES, kernel_address
from cpu_experts.matmul import plain, transposed
from cpu_experts.moe import PARTS
from cpu_experts.pool import pool_address

_COMMON: dict[str, Callable[[], object]] = {
    **PARTS,  # the longest first: steps are handed out in turns
    "matmul": plain,
    "matmul transposed": transposed,
    "one term": one_term,
    "two terms": two_terms,
    "pool": pool_address,
}


def warmup(formats: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yields (done, total) after each step; UnsupportedFormat names a format that has no kernel.

    Steps are seconds long on the first run and milliseconds after it.
    """
    names = sorted(set(formats))
    for name in names:
        if name not in FORMATS:
            raise UnsupportedFormat(f"no kernel for weight format {name}")
    steps = [f"{name} {role}" for role in (TILES, ROWS, DEQUANT) for name in names]
    steps = [*_COMMON, *steps]
    yield 0, len(steps)
    missing = [step for step in steps if not _mark(step).exists()]
    helpers = _start_helpers(missing)
    try:
        # Own share first, then what the helpers made; a step that one failed to make is made here.
        share = missing[:: len(helpers) + 1]
        order = [*share, *(step for step in steps if step not in share)]
        for done, step in enumerate(order, start=1):
            if step in missing and step not in share:
                _wait(helpers[missing.index(step) % (len(helpers) + 1) - 1], step)
            _run(step)
            yield done, len(steps)
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()


def _run(step: str) -> None:
    """Compile a step, or load it, and mark it as compiled."""
    if step in _COMMON:
        _COMMON[step]()
    else:
        name, role = step.split()
        kernel_address(FORMATS[name], role, tier())
    mark = _mark(step)
    if not mark.exists():
        mark.parent.mkdir(exist_ok=True)
        mark.touch()


def _mark(step: str) -> Path:
    return Path(use_own_folder()) / "compiled" / f"{tier()} {step}"


def _start_helpers(missing: list[str]) -> list[subprocess.Popen[bytes]]:
    """Processes that compile all of `missing` but every n-th from the first, which is ours."""
    n = min(default_threads(), len(missing) // 4, 8) if folder_is_shared() else 1
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cpu_experts.warmup", *missing[i::n]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is ours to handle
        )
        for i in range(1, n)
    ]


def _wait(helper: subprocess.Popen[bytes], step: str) -> None:
    """Until the helper has compiled a step, or has ended."""
    while helper.poll() is None and not _mark(step).exists():
        try:
            helper.wait(0.02)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        _run(wanted)
