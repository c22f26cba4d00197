"""This machine: measured once, remembered under its fingerprint, and never believed blindly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cpu_experts
from cpu_experts import amx, cpu
from cpu_experts.cache import use_own_folder
from localr1 import machine
from localr1.errors import UNSUPPORTED, Unsupported
from localr1.events import Progress
from localr1.settings import cache_folder
from offload import gpus, hardware, memory
from offload.hardware import Gpu, Hardware

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of our own, and figures that are quick and rough."""
    use_own_folder()  # compiled kernels stay where they are
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALR1_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(machine, "_MOST", 64 << 20)
    monkeypatch.setattr(machine, "_READ_SECONDS", 0.05)
    monkeypatch.setattr(machine, "_PEAK_SECONDS", 0.01)
    monkeypatch.setattr(hardware.disk, "_MOST_WRITTEN", 8 << 20)


def no_measuring(*_: object) -> Hardware:
    raise AssertionError("this was to come from the cache")


def files() -> list[Path]:
    return sorted(cache_folder().iterdir())


def lasting(found: Hardware) -> dict[str, object]:
    """The facts that are not looked up anew."""
    free = {"ram_total", "ram_available", "disk_free"}
    return {key: value for key, value in hardware.to_json(found).items() if key not in free}


def test_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Progress] = []
    first = machine.hardware(report=heard.append)
    assert [event.done for event in heard] == [0, 1, 2, 3, 4]
    more = "+amx" if amx.in_use() else "+zen" if cpu.is_zen() else ""
    assert first.isa == cpu_experts.tier() + more and first.threads == cpu_experts.get_threads()
    assert first.ram_bandwidth > 1e8 and first.int8_ops > 1e9 and first.assumed == frozenset()
    monkeypatch.setattr(hardware, "measured", no_measuring)
    monkeypatch.setattr(memory, "available_bytes", lambda: 12345)
    heard.clear()
    again = machine.hardware(report=heard.append)
    assert heard == [] and lasting(again) == lasting(first)
    assert again.ram_available == 12345
    assert len(files()) == 1
    with pytest.raises(AssertionError):
        machine.hardware(remeasure=True)


def test_what_decides_the_figures_is_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.hardware()
    before = cpu_experts.get_threads()
    assert machine.hardware(threads=1).threads == 1
    assert cpu_experts.get_threads() == before
    monkeypatch.setenv("LOCALR1_MODELS", str(tmp_path))
    machine.hardware()
    monkeypatch.setenv("LOCALR1_ISA", "portable")
    assert machine.hardware().isa == "portable"
    card = Gpu("Some GPU", 1 << 30, 1 << 29, (8, 9), "580.1", 0.0, 0.0)
    monkeypatch.setattr(gpus, "look", lambda: (card,))
    monkeypatch.setattr(gpus, "measure", lambda seen: seen)
    assert machine.hardware().assumed == {"gpu.bandwidth", "gpu.pcie"}
    assert len(files()) == 5


def test_a_tier_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALR1_ISA", "mmx")
    with pytest.raises(Unsupported, match="LOCALR1_ISA=mmx") as caught:
        machine.hardware()
    assert caught.value.code == UNSUPPORTED and caught.value.hint


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_measured_anew(data: st.DataObject) -> None:
    folder, seen = Path("models"), gpus.look()
    key = machine._fingerprint(folder, seen, None)
    path = cache_folder() / "hardware-test.json"
    whole = hardware.on_paper(vram=None, ram=1 << 34)
    machine._remember(path, key, whole)
    assert machine._remembered(path, key) == whole
    good = path.read_bytes()
    cut = data.draw(st.integers(0, len(good) - 1))
    path.write_bytes(good[:cut] + data.draw(st.binary(max_size=8)))
    try:
        same = json.loads(path.read_bytes()) == json.loads(good)
    except ValueError:
        same = False
    assert same or machine._remembered(path, key) is None
    path.write_bytes(good)
    assert machine._remembered(path, {**key, "cpu": "another"}) is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert machine.hardware().threads > 0


def test_nothing_is_left_of_a_write_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    machine.hardware()
    assert files() == []


def test_a_remembered_machine_needs_nothing_heavy() -> None:
    machine.hardware()
    code = (
        "import sys, time\nfrom localr1.machine import hardware\nimport offload.hardware\n"
        "began = time.perf_counter(); hardware(); took = time.perf_counter() - began\n"
        "print([m for m in ('torch', 'numba', 'cpu_experts', 'rich') if m in sys.modules])\n"
        "print(took)"
    )
    least = float("inf")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )
        heavy, took = done.stdout.splitlines()
        assert heavy == "[]"
        least = min(least, float(took))
    assert least < 0.1 or gpus.look()


def test_the_time_for_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._touched(200 << 20, 2).nbytes == 192 << 20
    monkeypatch.setattr(machine, "_TOUCH_SECONDS", -1.0)
    began = time.monotonic()
    data = machine._touched(8 << 30, 2)
    assert data.nbytes == 64 << 20 and data.all()
    assert time.monotonic() - began < 5
