"""Predicted speeds: limits by hand, and that no better number ever predicts slower."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from offload.hardware import AMX, Hardware, on_paper
from offload.placement import Kind, Weight
from offload.predict import PROMPT, Traffic, predict, prompt_cost, streams_from

GIB = 1 << 30
NOTHING = Traffic(
    gpu_bytes=0, gpu_hidden_bytes=0, ram_bytes=0, linear_bytes=0, disk_bytes=0, gpu_layers=0,
    routed=False, cpu_layers=0, handoffs=0, decode_operations=0, prompt_operations=0,
    prompt_ram_bytes=0, prompt_gpu_bytes=0, prompt_disk_bytes=0, cpu_operations=0,
    gpu_operations=0, streamed_bytes=0, stored_bytes=0, uploaded_bytes=0,
)  # fmt: skip


def machine(**speeds: float) -> Hardware:
    base = on_paper(
        vram=24 * GIB, ram=64 * GIB, ram_bandwidth=200e9, vram_bandwidth=1000e9, pcie=25e9
    )
    return replace(base, disk_bandwidth=2e9, int8_ops=10e12, **speeds)


def test_the_limit_is_bytes_by_bandwidth() -> None:
    """Design: CPU bytes by RAM bandwidth, GPU bytes by VRAM bandwidth, one after the other."""
    hardware = machine()
    traffic = replace(NOTHING, ram_bytes=12.31e9, gpu_bytes=8e9, gpu_hidden_bytes=1e9)
    found = predict(traffic, hardware, hardware.gpus[0])
    assert abs(found.decode_limit_tps - 1 / (12.31 / 200 + 8 / 1000)) < 1e-6
    assert found.decode_limit == "RAM bandwidth"
    assert 0.7 * found.decode_limit_tps < found.decode_tps < found.decode_limit_tps
    on_disk = predict(replace(traffic, disk_bytes=2e9), hardware, hardware.gpus[0])
    assert on_disk.decode_limit == "disk bandwidth"
    assert on_disk.decode_limit_tps < 1.0


def test_a_prompt_is_bound_by_arithmetic_or_by_reading() -> None:
    hardware = machine()
    computing = replace(NOTHING, cpu_operations=100e12, prompt_ram_bytes=1e9)
    reading = replace(NOTHING, cpu_operations=1e9, prompt_ram_bytes=400e9)
    assert predict(computing, hardware, None).prefill_limit == "CPU arithmetic"
    found = predict(reading, hardware, None)
    assert found.prefill_limit == "RAM bandwidth"
    assert found.prefill_tps < PROMPT / (400 / 200)


def test_experts_cross_where_the_cpu_would_take_longer() -> None:
    """R1: 367 GiB take 15.8 s at 25 GB/s; 10 TOP/s compute what some 1,700 tokens ask in that."""
    hardware, values = machine(), 58 * 256 * 3 * 7168 * 2048
    experts = Weight("experts", 367 * GIB, 8 / 256, Kind.ROUTED, values)
    few = streams_from([experts], hardware, hardware.gpus[0])
    assert 1600 < few < 1800
    twice = replace(hardware.gpus[0], pcie=50e9)
    assert 0.35 * few < streams_from([experts], hardware, twice) < 0.5 * few
    slow = machine(ram_bandwidth=20e9)  # too slow to fill the card's buffers
    assert streams_from([experts], slow, slow.gpus[0]) > 3 * few
    traffic = replace(NOTHING, streamed_bytes=25e9)
    found = predict(traffic, hardware, hardware.gpus[0])
    assert found.prefill_limit == "PCIe bandwidth"
    assert abs(found.prefill_tps / PROMPT - 1) < 1e-3


def test_huge_pages_leave_what_a_core_computes() -> None:
    """The fewer bytes each core has to read, the nearer to the limit."""
    shares = []
    for bandwidth, threads in ((38e9, 2), (140e9, 16)):
        hardware = machine(ram_bandwidth=bandwidth, threads=threads)
        traffic = replace(NOTHING, ram_bytes=12e9)
        found = predict(traffic, hardware, None, owned=True)
        shares.append(found.decode_tps / found.decode_limit_tps)
        assert found.decode_tps > predict(traffic, hardware, None).decode_tps
    assert 0.83 < shares[0] < 0.85 and 0.91 < shares[1] < 0.93


def test_amx_makes_quicker_what_all_tokens_meet() -> None:
    for kind in Kind:
        experts = 8 / 256 if kind is Kind.ROUTED else 1.0
        weight = Weight("w", 1 << 20, experts, kind, 1 << 21)
        read, operations, weighed = prompt_cost(weight, "avx512_vnni")
        tiles = prompt_cost(weight, AMX)
        assert tiles[:2] == (read, operations)
        few = kind in (Kind.ROUTED, Kind.HEAD)  # tokens that it meets
        assert tiles[2] == weighed if few else tiles[2] < weighed / 2


def test_loading_is_reading_the_disk_and_uploading() -> None:
    hardware = machine()
    traffic = replace(NOTHING, stored_bytes=40 * 10**9, uploaded_bytes=50 * 10**9)
    assert predict(traffic, hardware, None).load_seconds == 20
    assert predict(traffic, hardware, hardware.gpus[0]).load_seconds == 22


amounts = st.floats(0, 1e13)
traffics = st.builds(
    Traffic,
    gpu_bytes=amounts, gpu_hidden_bytes=amounts, ram_bytes=amounts,
    linear_bytes=st.just(0.0), disk_bytes=amounts,
    gpu_layers=st.integers(0, 100), routed=st.booleans(),
    cpu_layers=st.integers(0, 100), handoffs=st.integers(0, 100),
    decode_operations=st.integers(0, 1 << 20), prompt_operations=st.integers(0, 1 << 20),
    prompt_ram_bytes=amounts, prompt_gpu_bytes=amounts, prompt_disk_bytes=amounts,
    cpu_operations=amounts, gpu_operations=amounts, streamed_bytes=amounts,
    stored_bytes=st.integers(0, 10**13),
    uploaded_bytes=st.integers(0, 10**13),
)  # fmt: skip
SPEEDS = ("ram_bandwidth", "disk_bandwidth", "int8_ops")


@given(traffics, st.sampled_from(SPEEDS), st.floats(1, 1000), st.booleans())
def test_a_quicker_part_is_never_slower(
    traffic: Traffic, name: str, more: float, owned: bool
) -> None:
    hardware = machine()
    better = replace(hardware, **{name: getattr(hardware, name) * more})
    card = hardware.gpus[0]
    quick_card = replace(card, bandwidth=card.bandwidth * more, pcie=card.pcie * more)
    before = predict(traffic, hardware, card, owned)
    assert before.decode_tps >= predict(traffic, hardware, card).decode_tps
    for found, gpu in ((better, card), (hardware, quick_card)):
        after = predict(traffic, found, gpu, owned)
        assert after.decode_tps >= before.decode_tps * (1 - 1e-9)
        assert after.prefill_tps >= before.prefill_tps * (1 - 1e-9)
        assert after.decode_limit_tps >= before.decode_limit_tps * (1 - 1e-9)
        assert after.load_seconds <= before.load_seconds


@given(traffics, st.booleans())
def test_nothing_beats_its_limit(traffic: Traffic, owned: bool) -> None:
    hardware = machine()
    found = predict(traffic, hardware, hardware.gpus[0], owned)
    assert 0 < found.decode_tps <= found.decode_limit_tps
    assert found.prefill_tps > 0
