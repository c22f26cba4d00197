"""Compile, or load from the cache, what a set of formats needs: on all cores the first time.

Numba compiles one function at a time in a process, so in a first run this process and its helpers
each take the next step until none is left. The helpers leave the machine code in the disk cache,
from where this process takes it. A mark in the cache's folder says that a step has been compiled,
by whomever.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cpu_experts import bf16_experts, bf16_products, mailbox
from cpu_experts.activations import prepared
from cpu_experts.cache import folder_is_shared, use_own_folder
from cpu_experts.cpu import default_threads, tier
from cpu_experts.formats import FORMATS, UnsupportedFormat
from cpu_experts.kernels.registry import DEQUANT, ROWS, TILES, kernel_address
from cpu_experts.matmul import plain, transposed
from cpu_experts.moe import PARTS
from cpu_experts.pool import pool_address
from cpu_experts.token_program import GROUPED, LATENT, codes

_COMMON: dict[str, Callable[[], object]] = {
    **PARTS,
    "matmul": plain,
    "matmul transposed": transposed,
    "activations": prepared,
    "pool": pool_address,
}
MAILBOX = "mailbox"
_MAILBOX: dict[str, Callable[[], object]] = {MAILBOX: mailbox.code}
_LONG = ("moe", "moe few tokens", MAILBOX, "step attend_latents", "step attend_heads")
_PROGRAMS = codes((LATENT, GROUPED))
_ALL = {**_COMMON, **_MAILBOX, **bf16_products.STEPS, **bf16_experts.STEPS, **_PROGRAMS}


def warmup(
    formats: Iterable[str], callers: Sequence[str] = (LATENT, GROUPED)
) -> Iterator[tuple[int, int]]:
    """Yields (done, total) while it works; UnsupportedFormat names a format that has no kernel.

    `callers`: LATENT or GROUPED for programs with such attention (token_program.py), MAILBOX.
    Steps are seconds long on the first run and milliseconds after it.
    """
    names = sorted(set(formats))
    for name in names:
        if name not in FORMATS:
            raise UnsupportedFormat(f"no kernel for weight format {name}")
    tiles, *small = ([f"{name} {role}" for name in names] for role in (TILES, ROWS, DEQUANT))
    attention = [caller for caller in callers if caller != MAILBOX]
    asked = _MAILBOX if MAILBOX in callers else {}
    known = [*_COMMON, *asked, *(codes(attention) if attention else {})]
    long = [step for step in known if step in _LONG]
    short = [step for step in known if step not in _LONG]
    wide = bf16_products.steps(names)
    if wide:
        wide = [*bf16_experts.STEPS, *wide]
    # We begin with what calls kernels, helpers at the other end with kernels: what each of them has
    # compiled on the way serves its next steps.
    steps = [*long, *short, *reversed([*tiles, *small[0], *wide, *small[1]])]
    yield 0, len(steps)
    missing = deque(step for step in steps if not _mark(step).exists())
    helpers = _start_helpers(missing)
    collected = gc.isenabled()
    gc.disable()  # compiling makes much that stays: looking through it again takes a twentieth
    try:
        while missing:
            with suppress(IndexError):  # a helper took the last one
                _run(missing.popleft())
            yield sum(_mark(step).exists() for step in steps) - 1, len(steps)
        for helper in helpers:
            helper.feeder.join()
        for step in steps:  # what the helpers compiled is loaded, what one failed to is compiled
            _run(step)
        yield len(steps), len(steps)
    finally:
        if collected:
            gc.enable()
        for helper in helpers:
            helper.process.kill()
            helper.process.communicate()


def _run(step: str) -> None:
    """Compile a step, or load it, and mark it as compiled."""
    if step in _ALL:
        _ALL[step]()
    else:
        name, role = step.split()
        kernel_address(FORMATS[name], role, tier())
    mark = _mark(step)
    if not mark.exists():
        mark.parent.mkdir(exist_ok=True)
        mark.touch()


def _mark(step: str) -> Path:
    return Path(use_own_folder()) / "compiled" / f"{tier()} {step}"


class _Helper:
    """A process that compiles steps as a thread of ours hands them over, one at a time."""

    def __init__(self, missing: deque[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cpu_experts.warmup"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C is ours to handle
        )
        self.feeder = threading.Thread(target=self._feed, args=(missing,), daemon=True)
        self.feeder.start()

    def _feed(self, missing: deque[str]) -> None:
        assert self.process.stdin and self.process.stdout
        with suppress(IndexError, OSError, ValueError):  # nothing is left, or the process has ended
            while self.process.stdout.readline():  # it is ready for a step
                self.process.stdin.write(missing.pop() + "\n")
                self.process.stdin.flush()


def _start_helpers(missing: deque[str]) -> list[_Helper]:
    n = min(default_threads(), len(missing) // 4, 8) if folder_is_shared() else 1
    return [_Helper(missing) for _ in range(1, n)]


def _serve() -> None:
    """The helper's life: a line on stdout asks for a step, a line on stdin names it."""
    gc.disable()
    while print(flush=True) is None and (step := sys.stdin.readline().strip()):
        _run(step)


if __name__ == "__main__":
    _serve()
