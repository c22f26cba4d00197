"""Machines on paper, this machine, and their way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload import disk, gpus, hardware
from offload.hardware import Gpu, Hardware, Probes, from_json, on_paper, to_json

GIB = 1 << 30
SPEED = 45e9
PROBES = Probes(2, 2, "portable", ram_bandwidth=lambda: SPEED, int8_ops=lambda: 1e12)

counts = st.integers(0, 1 << 60)
speeds = st.floats(0, 1e18)
cards = st.builds(
    Gpu, st.text(), counts, counts, st.tuples(counts, counts), st.text(), speeds, speeds
)
machines = st.builds(
    Hardware,
    gpus=st.lists(cards, max_size=3).map(tuple),
    ram_total=counts,
    ram_available=counts,
    ram_bandwidth=speeds,
    int8_ops=speeds,
    threads=counts,
    cores=counts,
    numa_nodes=counts,
    isa=st.text(),
    disk_bandwidth=speeds,
    disk_free=counts,
    assumed=st.frozensets(st.text()),
)


@settings(deadline=None)  # other programs may use the machine
@given(machines)
def test_json_and_back(machine: Hardware) -> None:
    assert from_json(json.loads(json.dumps(to_json(machine)))) == machine


def damaged() -> list[object]:
    """What a file may hold that is not a machine: every field gone, or of another kind."""
    good = json.loads(json.dumps(to_json(on_paper(vram=24 * GIB, ram=64 * GIB))))
    card = good["gpus"][0]
    wrong: list[object] = [None, [], 3, {}, {**good, "more": 1}]
    wrong += [{key: value for key, value in good.items() if key != name} for name in good]
    wrong += [{**good, name: None} for name in good]
    wrong += [{**good, "gpus": [{**card, name: None}]} for name in card]
    wrong += [{**good, "gpus": [{**card, "capability": [8]}]}]
    wrong += [{**good, name: -1} for name in ("ram_total", "pcie", "threads")]
    wrong += [{**good, "ram_bandwidth": float("nan")}, {**good, "ram_total": 1.5}]
    return wrong


@pytest.mark.parametrize("facts", damaged(), ids=lambda facts: "")
def test_what_is_no_machine(facts: object) -> None:
    with pytest.raises(ValueError):
        from_json(facts)


def test_on_paper_names_what_it_assumes() -> None:
    machine = on_paper(vram=24 * GIB, ram=382 * GIB)
    (card,) = machine.gpus
    assert machine.ram_total == machine.ram_available == 382 * GIB
    assert card.total == 24 * GIB and 23.5 * GIB < card.free < 23.8 * GIB
    assert {"ram_bandwidth", "gpu.bandwidth", "gpu.pcie", "isa", "threads"} <= machine.assumed
    given = on_paper(
        vram=24 * GIB, ram=382 * GIB, ram_bandwidth=1e11, pcie=2e10, vram_bandwidth=9e11
    )
    assert (given.ram_bandwidth, given.gpus[0].pcie, given.gpus[0].bandwidth) == (1e11, 2e10, 9e11)
    assert not given.assumed & {"ram_bandwidth", "gpu.bandwidth", "gpu.pcie", "ram_total"}


@pytest.mark.parametrize("vram", [None, 0])
def test_on_paper_without_a_gpu(vram: int | None) -> None:
    machine = on_paper(vram=vram, ram=96 * GIB)
    assert machine.gpus == ()
    assert not any(name.startswith("gpu.") for name in machine.assumed)


@given(st.integers(0, 200 * GIB), st.integers(0, 200 * GIB), st.integers(0, 8 * GIB))
def test_more_memory_is_never_slower(vram: int, ram: int, more: int) -> None:
    small = on_paper(vram=vram, ram=ram)
    large = on_paper(vram=vram + more, ram=ram + more)
    assert large.ram_bandwidth >= small.ram_bandwidth and large.int8_ops >= small.int8_ops
    for before, after in zip(small.gpus, large.gpus, strict=False):
        assert after.bandwidth >= before.bandwidth and after.free >= before.free


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_impossible_speeds_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="pcie"):
        on_paper(vram=GIB, ram=GIB, pcie=value)


def test_this_machine(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    machine = hardware.measured(tmp_path / "models", PROBES, lambda *event: heard.append(event))
    assert [(done, total) for _, done, total in heard] == [(i, 4) for i in range(5)]
    assert len({stage for stage, _, _ in heard}) == 5
    assert machine.ram_bandwidth == SPEED and machine.isa == "portable"
    assert 0 < machine.ram_available <= machine.ram_total
    assert machine.disk_bandwidth > 1e6 and machine.disk_free > 0 and machine.numa_nodes >= 1
    assert machine.assumed == frozenset()
    assert list(tmp_path.iterdir()) == []
    assert len(machine.gpus) == len(gpus.look())


def test_what_cannot_be_measured_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    shy = Gpu("shy", 24 * GIB, 20 * GIB, (8, 9), "580", bandwidth=0.0, pcie=0.0)
    monkeypatch.setattr(gpus, "look", lambda: (shy,))
    monkeypatch.setattr(gpus, "measure", lambda found: found)
    machine = hardware.measured(Path("/proc"), PROBES)  # no disk, and nobody can write there
    assert machine.assumed == {"disk_bandwidth", "gpu.bandwidth", "gpu.pcie"}
    typical = on_paper(vram=24 * GIB, ram=GIB)
    assert machine.disk_bandwidth == typical.disk_bandwidth
    assert machine.gpus[0].bandwidth == typical.gpus[0].bandwidth
    assert machine.gpus[0].free == shy.free


def test_what_is_free_is_looked_up_again(tmp_path: Path) -> None:
    before = on_paper(vram=24 * GIB, ram=1)
    (card,) = before.gpus
    now = replace(card, free=GIB, bandwidth=0.0, pcie=0.0)
    machine = hardware.refreshed(before, (now,), tmp_path)
    assert machine.gpus == (replace(card, free=GIB),)
    assert machine.ram_available > 1
    assert machine.disk_free == disk.free_bytes(tmp_path / "not" / "there")
    assert machine.ram_bandwidth == before.ram_bandwidth


@pytest.mark.parametrize(("text", "nodes"), [("0\n", 1), ("0-1\n", 2), ("0,2-7\n", 7), ("\n", 1)])
def test_numa_nodes(tmp_path: Path, text: str, nodes: int) -> None:
    (tmp_path / "has_memory").write_text(text)
    assert hardware.numa_nodes(tmp_path) == nodes
    assert hardware.numa_nodes(tmp_path / "nothing") == 1
