"""How fast weights come into RAM, against dd in the same rounds; and how soon a model answers.

    python -m tools.bench_residency [--size 4GiB] [--folder DIR] [--model FILE.gguf]

Writes a file of random bytes, loads it cold and warm in both residencies, and removes it. With
`--model`, also the time from starting `localr1 run` to its first token, the file being in the page
cache. A cold file is one whose pages were dropped; the disk may have a cache of its own.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from localr1.llm import size_in_bytes
from offload import syscalls
from offload.residency import holder

ROUNDS = 3
_CHUNK = 64 << 20


def seconds(work: Callable[[], None]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_random(path: Path, size: int) -> None:
    """Random bytes, all different, on the disk when this returns."""
    rng = np.random.default_rng()
    with path.open("wb") as file:
        for offset in range(0, size, _CHUNK):
            file.write(rng.bytes(min(_CHUNK, size - offset)))
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path) -> None:
    """Take the file out of the page cache."""
    with path.open("rb") as file:
        syscalls.forget(file.fileno(), 0, 0)


def warm(path: Path) -> None:
    """Bring the file into the page cache."""
    dd(path)


def dd(path: Path, *flags: str) -> None:
    """Read the file as dd does, into nothing."""
    command = ["dd", f"if={path}", "of=/dev/null", "bs=8M", *flags]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def touch(size: int) -> None:
    """Use this much memory and free it. A virtual machine's host takes free pages back and needs
    long to return them; whoever reads first would pay for all.
    """
    memory = syscalls.anonymous(size)
    syscalls.madvise(syscalls.address_of(memory), size, syscalls.MADV_HUGEPAGE)
    np.frombuffer(memory, np.uint8)[:: syscalls.PAGE] = 1


def load(path: Path, name: str) -> None:
    """Bring the file in as a loader does."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for _ in holder(name, {path: data}).load():
        pass


def rows(path: Path) -> dict[str, list[float]]:
    """Seconds of every way to read the file, a few rounds of all in turn."""
    ways: dict[str, tuple[Callable[[Path], None], Callable[[], None]]] = {
        "cold, dd": (drop, lambda: dd(path)),
        "cold, dd iflag=direct": (drop, lambda: dd(path, "iflag=direct")),
        "cold, mapped": (drop, lambda: load(path, "mapped")),
        "cold, owned": (drop, lambda: load(path, "owned")),
        "warm, dd": (warm, lambda: dd(path)),
        "warm, mapped": (warm, lambda: load(path, "mapped")),
        "warm, owned": (warm, lambda: load(path, "owned")),
    }
    size = path.stat().st_size
    took: dict[str, list[float]] = {name: [] for name in ("memory, first touch", *ways)}
    for _ in range(ROUNDS):
        drop(path)
        took["memory, first touch"].append(seconds(lambda: touch(size)))
        for name, (prepare, work) in ways.items():
            prepare(path)
            touch(size)
            took[name].append(seconds(work))
    return took


def first_token(model: Path) -> float:
    """Seconds from starting the program to the first event it prints."""
    command = [sys.executable, "-m", "localr1", "run", str(model), "hi"]
    command += ["--max-tokens", "1", "--json"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - began
        process.stdout.read()
    if process.returncode or '"text"' not in line:
        sys.exit(f"localr1 run failed: {line}")
    return took


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="speed of loading")
    parser.add_argument("--size", default="4GiB", help="of the random file")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--model", type=Path, help="a GGUF file to start twice")
    args = parser.parse_args()
    size = size_in_bytes(args.size) or 0
    if shutil.disk_usage(args.folder).free < 2 * size:
        sys.exit(f"{args.folder} has not enough room for a file of {args.size}")
    path = args.folder / "bench_residency.bin"
    try:
        write_random(path, size)
        for name, took in rows(path).items():
            speeds = [size / 1e9 / s for s in took]
            middle, low, high = statistics.median(speeds), min(speeds), max(speeds)
            print(f"{name:24} {middle:6.2f} GB/s  ({low:.2f} to {high:.2f})", flush=True)
    finally:
        path.unlink(missing_ok=True)
    if args.model:
        warm(args.model)
        first_token(args.model)  # compiles what is not compiled yet
        times = [first_token(args.model) for _ in range(2 * ROUNDS - 1)]
        shown = ", ".join(f"{t:.2f}" for t in sorted(times))
        print(f"second start, first token: {statistics.median(times):.2f} s  ({shown})")


if __name__ == "__main__":
    main()
