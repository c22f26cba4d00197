"""Pulls in processes of their own: two at once, interrupted, and killed at random points."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localr1 import registry, store
from localr1.errors import LocalR1Error
from tests import test_download
from tests.hub import Hub
from tests.test_download import MIB, MODEL, SHARDS, expected, held, pull

ROOT = Path(__file__).parent.parent
hub = test_download.hub  # the fixture


def test_two_at_once_do_not_mix(hub: Hub) -> None:
    hub.seconds = 0.005
    process = start(f"{MODEL}:Q8_0")
    wait_for_bytes(1)
    with pytest.raises(LocalR1Error, match="another localr1 is at work on"):
        pull(quant="Q8_0")
    assert process.wait(60) == 0
    assert held(registry.here(MODEL, None)[0]) == expected(hub, ["Model-Q8_0.gguf"])


def start(name: str) -> subprocess.Popen[bytes]:
    """A pull in a process of its own."""
    command = [sys.executable, "-m", "localr1", "pull", name]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_bytes(nbytes: int) -> None:
    """Until the store holds so much of anything."""
    deadline = time.monotonic() + 60
    while sum(stored.nbytes_here for stored in store.all_stored()) < nbytes:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_interrupt_says_how_to_go_on(hub: Hub) -> None:
    hub.seconds = 0.01
    process = start(f"{MODEL}:Q8_0")
    wait_for_bytes(200_000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert f"`localr1 pull {MODEL}:Q8_0` goes on from there" in err.decode()
    assert b"Traceback" not in err
    hub.seconds = 0
    assert held(pull(quant="Q8_0")) == expected(hub, ["Model-Q8_0.gguf"])


@pytest.mark.parametrize(
    "kills", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_pull_that_is_killed_again_and_again_ends_well(hub: Hub, kills: int) -> None:
    """Three parts come at once; at each random point the process is gone without a word."""
    points = sorted(random.Random(kills).sample(range(1, 3 * MIB - 400_000), kills))
    for point in points:
        hub.seconds = 0.01
        process = start(MODEL)
        wait_for_bytes(point)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    hub.seconds = 0
    process = start(MODEL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    stored = registry.here(MODEL, None)[0]
    assert held(stored) == expected(hub, SHARDS)
    assert registry.resolve(MODEL).path == stored.path
    assert os.path.getsize(stored.path) == MIB
