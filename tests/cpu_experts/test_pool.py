"""The worker pool: any caller, sleep when idle, forks, clean ends; the cache and the tiers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cpu_experts import UnsupportedFormat, cpu, get_threads, matmul, set_threads, warmup
from cpu_experts.bench.pool_rows import fork_join_seconds
from cpu_experts.cpu import UnsupportedISA
from tests.cpu_experts.blocks import random_tensor

RNG = np.random.default_rng(0)
WEIGHT = random_tensor("Q8_0", (512, 1024), RNG)
X = RNG.normal(0, 1, (2, 1024)).astype(np.float32)

PROGRAM = """
import numpy as np
from cpu_experts import QuantTensor, matmul, set_threads
set_threads(3)
w = QuantTensor("Q8_0", (512, 1024), (np.ones((512, 32, 34), dtype=np.uint8),))
y = matmul(np.ones((1, 1024), dtype=np.float32), w)
print(float(y.sum()))
"""


def in_process(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(autouse=True)
def _threads():
    yield
    set_threads(None)


def test_any_number_of_threads_gives_the_same() -> None:
    set_threads(1)
    wanted = matmul(X, WEIGHT)
    for n in (2, 3, 5):
        set_threads(n)
        assert get_threads() == n
        for _ in range(50):
            np.testing.assert_array_equal(matmul(X, WEIGHT), wanted)
    with pytest.raises(ValueError, match="at least 1"):
        set_threads(0)


def test_callers_on_several_threads_do_not_meet() -> None:
    set_threads(2)
    inputs = [RNG.normal(0, 1, (1, 1024)).astype(np.float32) for _ in range(4)]
    wanted = [matmul(x, WEIGHT) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(100):
            if not np.array_equal(matmul(inputs[i], WEIGHT), wanted[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_idle_workers_use_no_cpu() -> None:
    set_threads(3)
    matmul(X, WEIGHT)
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.005
    matmul(X, WEIGHT)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP")
def test_stopping_and_continuing_the_process_is_harmless() -> None:
    program = PROGRAM + (
        "import sys\n"
        "print('ready', flush=True)\n"
        "x = np.ones((1, 1024), dtype=np.float32)\n"
        "same = [np.array_equal(matmul(x, w), y) for _ in range(15000)]\n"
        "print(all(same))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    for _ in range(5):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    assert process.communicate(timeout=60)[0].split()[-1] == "True"


def test_a_job_meets_all_threads_and_ends() -> None:
    """The benchmark's own job, with more threads than cores: it would hang if one were missing."""
    for n in (2, 5):
        set_threads(n)
        assert all(0 < seconds < 1 for seconds in fork_join_seconds(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_its_own_pool() -> None:
    program = PROGRAM + (
        "import os\n"
        "child = os.fork()\n"
        "y = matmul(np.ones((1, 1024), dtype=np.float32), w)\n"
        "if child == 0: os._exit(int(y.sum() != 0) + 40)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    result = in_process(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "41"


def test_the_interpreter_ends_cleanly_with_workers_alive() -> None:
    result = in_process(PROGRAM)
    assert (result.returncode, result.stderr) == (0, "")


def test_two_processes_start_on_an_empty_cache(tmp_path) -> None:
    """Both compile and write; a third one only reads, and gets the same."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0] for process in both]
    written = {f.name: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nb[ci]")}
    assert written
    third = in_process(PROGRAM, XDG_CACHE_HOME=str(tmp_path))
    assert {*answers, third.stdout} == {answers[0]}
    assert written == {f.name: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nb[ci]")}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = in_process(PROGRAM, XDG_CACHE_HOME=str(blocked), TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_warmup_counts_its_steps() -> None:
    steps = list(warmup(["Q8_0", "Q8_0"]))
    total = steps[-1][1]
    assert steps == sorted(steps) and steps[0] == (0, total) and steps[-1] == (total, total)
    assert list(warmup([]))[-1][1] < total
    with pytest.raises(UnsupportedFormat, match="Q9_X"):
        next(warmup(["Q9_X"]))


def test_the_tier_follows_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("LOCALR1_ISA", "portable")
    assert cpu.tier() == "portable"
    monkeypatch.setenv("LOCALR1_ISA", "mmx")
    with pytest.raises(UnsupportedISA, match="mmx"):
        cpu.tier()
    monkeypatch.setenv("LOCALR1_ISA", "avx512_vnni")
    monkeypatch.setattr(cpu, "features", frozenset)
    with pytest.raises(UnsupportedISA, match="lacks"):
        cpu.tier()
    monkeypatch.delenv("LOCALR1_ISA")
    assert cpu.tier() == "portable"


def test_limits_of_the_machine_are_respected() -> None:
    cores = cpu.physical_cores()
    assert set(cores) <= os.sched_getaffinity(0)
    assert 1 <= cpu.default_threads() <= len(cores)


def test_every_format_in_the_portable_tier() -> None:
    """The format tests again, in a process that may not use the faster tier."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "tests/cpu_experts/test_formats.py"],
        env={**os.environ, "LOCALR1_ISA": "portable"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:]
