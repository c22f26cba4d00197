"""Compile many kernels at once, in helper processes, before the first of them is needed.

A first start compiles for seconds on all cores and says how far it is; a second start finds all on
the disk and starts no helper. A helper is `python -m localr1.gpu.warmup ARCH`: it reads a
configuration a line and answers each with a line.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from localr1.gpu.cubins import Configuration, cubin, is_kept
from localr1.gpu.driver import GpuError

_MOST_HELPERS = 16


def warmup(
    configurations: Iterable[Configuration], arch: int, helpers: int | None = None
) -> Iterator[tuple[int, int]]:
    """Compile what the disk lacks; yields (done, total) of what was lacking, (0, 0) if nothing.

    GpuError names a kernel that does not compile.
    """
    texts = {c.to_json(): None for c in configurations if not is_kept(c, arch)}
    yield 0, len(texts)
    for done, answer in enumerate(answers(texts, arch, helpers), start=1):
        if "error" in answer:
            raise GpuError(answer["error"])
        yield done, len(texts)


def answers(
    texts: Iterable[str], arch: int, helpers: int | None = None
) -> Iterator[dict[str, Any]]:
    """What helpers say of configurations (as JSON), in the order in which they finish: `name`,
    `shared` bytes, `text`; or `error`.
    """
    todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    work = list(texts)
    for text in work:
        todo.put(text)
    n_helpers = min(helpers or len(os.sched_getaffinity(0)), _MOST_HELPERS, len(work))
    processes = [_helper(arch) for _ in range(n_helpers)]
    try:
        for process in processes:
            todo.put(None)
            threading.Thread(target=_feed, args=(process, todo, done), daemon=True).start()
        for _ in work:
            yield done.get()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _helper(arch: int) -> subprocess.Popen[str]:
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "localr1.gpu.warmup", str(arch)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a Ctrl-C is ours to handle
    )


def _feed(
    process: subprocess.Popen[str],
    todo: queue.SimpleQueue[str | None],
    done: queue.SimpleQueue[dict[str, Any]],
) -> None:
    """Give one helper work until there is none; a helper's death fails what it had."""
    assert process.stdin is not None and process.stdout is not None
    while (text := todo.get()) is not None:
        try:
            process.stdin.write(text + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        failed = {"error": "a process that compiles GPU kernels died", "text": text}
        done.put(json.loads(answer) if answer else failed)


def _serve(arch: int) -> None:
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        answer: dict[str, Any] = {"text": line.rstrip("\n")}
        try:
            made = cubin(Configuration.from_json(line), arch)
            answer |= {"name": made.name, "shared": made.shared}
        except Exception as error:  # the other side raises it
            answer["error"] = str(error)
        os.write(answer_to, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
