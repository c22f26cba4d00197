"""The plan's promises over random machines and models, and its choices for R1 on known ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localr1 import registry
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from offload.hardware import AMX, ZEN, Gpu, Hardware, on_paper
from offload.placement import Demands, Item, Kind, Placement, Tier, Weight
from offload.planner import LEAST_CONTEXT, plan, with_room

MIB, GIB = 1 << 20, 1 << 30
SLACK = 1 - 1e-9  # sums of floats in another order


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Weight], Demands]:
    """Dense and MoE models of up to 12 layers, from megabytes to a terabyte."""
    n_layers, scale = draw(st.integers(1, 12)), draw(st.sampled_from([1, 64, 4096]))
    n_dense = draw(st.integers(0, n_layers))
    experts = draw(st.sampled_from([4 / 8, 8 / 64, 8 / 256]))

    def weight(name: str, fraction: float, kind: Kind) -> Weight:
        nbytes = scale * draw(st.integers(1, 8 * MIB))
        return Weight(name, nbytes, fraction, kind, 2 * nbytes)

    weights = [weight("token_embd.weight", 1e-5, Kind.EMBEDDING)]
    for layer in range(n_layers):
        weights.append(weight(f"blk.{layer}.attn_q.weight", 1.0, Kind.ATTENTION))
        weights.append(weight(f"blk.{layer}.attn_norm.weight", 1.0, Kind.ROUTER))
        if layer < n_dense:
            weights.append(weight(f"blk.{layer}.ffn_up.weight", 1.0, Kind.DENSE))
        else:
            weights.append(weight(f"blk.{layer}.ffn_up_shexp.weight", 1.0, Kind.SHARED))
            weights.append(weight(f"blk.{layer}.ffn_up_exps.weight", experts, Kind.ROUTED))
            weights.append(weight(f"blk.{layer}.ffn_down_exps.weight", experts, Kind.ROUTED))
    weights.append(weight("output_norm.weight", 1.0, Kind.ROUTER))
    weights.append(weight("output.weight", 1.0, Kind.HEAD))
    weights.append(weight("header", 0.0, Kind.UNUSED))
    small = st.integers(0, 1 << 18)
    cache_row = draw(st.integers(0, 1 << 14))
    demands = Demands(
        n_layers=n_layers,
        cache_name="cache",
        cache_gpu=cache_row,
        cache_gpu_8bit=cache_row // 2,
        cache_ram=2 * cache_row,
        gpu_per_token=draw(small),
        halved_from=draw(st.integers(1, 1 << 15)),
        gpu_piece=draw(small),
        gpu_streaming=draw(st.sampled_from([0, 1 << 20, 1 << 30])),
        ram_per_token=draw(small),
        hybrid_per_token=draw(small),
        experts_per_token=draw(small),
        embedded_per_token=draw(small),
        absorbed_per_token=draw(small),
        decode_operations=draw(small),
        prompt_operations=draw(small),
    )
    return weights, demands


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    """Machines whose disk is slower than their RAM, and whose GPU beats their CPU, as all do."""
    ram = draw(st.integers(0, 1 << 10)) * GIB // draw(st.sampled_from([1, 8, 64]))
    ram_speed = draw(st.floats(1e9, 1e12))
    int8 = draw(st.floats(1e10, 1e14))
    vram_speed = max(ram_speed, int8 / 20) * draw(st.floats(1.0, 20.0))
    total = draw(st.integers(1, 192)) * GIB
    gpu = Gpu(
        "card", total, total - total // 64, draw(st.sampled_from([(7, 5), (8, 6), (9, 0)])), "",
        vram_speed, 25e9,
    )  # fmt: skip
    return Hardware(
        gpus=(gpu,) if draw(st.booleans()) else (),
        ram_total=ram,
        ram_available=int(ram * draw(st.floats(0.1, 1.0))),
        ram_bandwidth=ram_speed,
        int8_ops=int8,
        threads=8,
        cores=8,
        numa_nodes=1,
        isa=draw(st.sampled_from(["avx512_vnni", AMX, ZEN, "portable"])),
        disk_bandwidth=ram_speed * draw(st.floats(0.001, 0.9)),
        disk_free=0,
        assumed=frozenset(),
    )


contexts = st.integers(2, 163_840)


@settings(max_examples=2000, deadline=None)
@given(models(), machines(), contexts)
def test_every_plan_keeps_its_budgets_and_places_all(
    model: tuple[list[Weight], Demands], machine: Hardware, context: int
) -> None:
    weights, demands = model
    found = plan(weights, machine, context, demands)
    assert found == plan(list(weights), machine, context, demands)
    assert found.tiers.keys() == {weight.name for weight in weights}
    assert found.gpu_bytes <= found.gpu_room or not found.gpu
    assert not found.works or found.ram_bytes <= found.ram_room
    assert found.ram_room <= min(machine.ram_total, machine.ram_available)
    read = [weight for weight in weights if weight.read_fraction]
    on_disk = any(found.tier(weight.name) is Tier.DISK for weight in read)
    assert found.fits == (found.works and not on_disk)
    assert (found.shortfall == 0) == found.fits
    assert min(context, LEAST_CONTEXT) <= found.context <= context
    placed = sum(weight.nbytes for weight in weights)
    kinds = {kind.value for kind in Kind}
    items = [item for item in (*found.gpu, *found.ram, *found.disk) if item.name in kinds]
    assert sum(item.nbytes for item in items) == placed
    assert found.prediction.decode_tps <= found.prediction.decode_limit_tps
    for weight in weights:
        where, kept = found.tier(weight.name), 0 <= weight.layer < found.cpu_layers
        if not found.gpu or kept or weight.kind in (Kind.EMBEDDING, Kind.UNUSED):
            assert where is not Tier.GPU
        elif weight.kind not in (Kind.DENSE, Kind.ROUTED):
            assert where is Tier.GPU


def rank(found: Placement) -> tuple[bool, bool, int]:
    """What more memory may only make better, before any speed is compared."""
    return found.works, found.fits, found.context if found.works else 0


def layers_on_gpu(found: Placement) -> int:
    return sum(".attn_q." in name and tier is Tier.GPU for name, tier in found.tiers.items())


CHANGES = ("ram", "vram", "ram_bandwidth", "vram_bandwidth", "disk_bandwidth", "int8_ops")


@settings(max_examples=2000, deadline=None)
@given(models(), machines(), contexts, st.sampled_from(CHANGES), st.floats(1.0, 8.0))
def test_a_better_machine_is_never_slower(
    model: tuple[list[Weight], Demands], machine: Hardware, context: int, what: str, more: float
) -> None:
    """More VRAM may take another layer's attention instead of FFNs: never slower than the CPU. And
    more of anything may make room for experts that prompts stream, instead of a layer's.
    """
    weights, demands = model
    before = plan(weights, machine, context, demands)
    after = plan(weights, improved(machine, what, more), context, demands)
    assert rank(after) >= rank(before)
    if what == "vram" and layers_on_gpu(after) != layers_on_gpu(before):
        before = plan(weights, with_room(machine, None, 0), context, demands)
    streams = after.streams_from is not None and before.streams_from is None
    if rank(after) == rank(before) and before.works and not streams:
        assert after.prediction.decode_tps >= before.prediction.decode_tps * SLACK


def improved(machine: Hardware, what: str, more: float) -> Hardware:
    if what == "ram":
        total, free = int(machine.ram_total * more), int(machine.ram_available * more)
        return replace(machine, ram_total=total, ram_available=free)
    if what == "vram":
        cards = [
            replace(g, total=int(g.total * more), free=int(g.free * more)) for g in machine.gpus
        ]
        return replace(machine, gpus=tuple(cards))
    if what == "vram_bandwidth":
        cards = [replace(gpu, bandwidth=gpu.bandwidth * more) for gpu in machine.gpus]
        return replace(machine, gpus=tuple(cards))
    return replace(machine, **{what: getattr(machine, what) * more})


@cache
def r1(quant: str = "Q4_K_M") -> inventory.Inventory:
    entry = registry.entries()["deepseek-r1"]
    config = config_from_hf(entry.config)
    return inventory.from_rule(config, quant, entry.quants[quant].nbytes)


def on(vram: float, ram: float, quant: str = "Q4_K_M", context: int = 16_384) -> Placement:
    stock = r1(quant)
    machine = on_paper(vram=int(vram * GIB), ram=int(ram * GIB))
    return plan(stock.weights, machine, context, stock.demands)


def sizes(items: tuple[Item, ...]) -> dict[str, int]:
    return {item.name: item.nbytes for item in items}


def test_r1_on_a_card_of_24_gib() -> None:
    """What its owner needs: 11 to 14.1 GiB of VRAM before spare VRAM takes experts, for good or for
    long prompts.
    """
    found = on(24, 382)
    gpu, ram = sizes(found.gpu), sizes(found.ram)
    assert found.fits and found.context == 16_384
    experts = gpu["routed experts"] + ram["routed experts"]
    assert abs(experts / GIB - 366.9) < 0.1
    spare = gpu["routed experts"] + gpu["streamed experts"]
    assert 11 * GIB < found.gpu_bytes - spare < 14.1 * GIB
    assert found.streams_from is not None and 1000 < found.streams_from < 4096
    assert gpu["MLA cache"] == 70_272 * 16_384
    assert ram["embedding"] > 0 and "attention" not in ram
    assert found.tier("blk.3.ffn_up_exps.weight") is Tier.GPU
    assert found.tier("blk.60.ffn_up_exps.weight") is Tier.RAM
    assert found.tier("token_embd.weight") is Tier.RAM


@pytest.mark.parametrize(
    ("ram", "fits"), [(382, True), (377, True), (367, True), (366.5, False), (382e9 / GIB, False)]
)
def test_r1_fits_to_the_gib(ram: float, fits: bool) -> None:
    """Routed experts beyond the one layer that the card takes 360.1 GiB, embedding 0.5, buffers of
    16K tokens 1.6, program 1, margin 1 % and 64 MiB: 366.9. With 366.5 a shorter context fits.
    """
    found = on(24, ram)
    assert (found.fits and found.context == 16_384) == fits
    assert found.fits == (ram >= 366)


def test_what_is_missing_is_what_it_takes() -> None:
    short = on(24, 360, context=LEAST_CONTEXT)
    assert not short.fits and short.works
    missing = short.shortfall / GIB
    assert on(24, 360 + missing * 1.0102, context=LEAST_CONTEXT).fits  # 1 % of it is margin
    assert not on(24, 360 + missing * 0.999, context=LEAST_CONTEXT).fits


def test_experts_that_ram_cannot_hold_stay_on_the_disk() -> None:
    found = on(24, 96)
    assert found.works and not found.fits
    assert found.prediction.decode_limit == "disk bandwidth"
    assert found.prediction.decode_tps < 1 < on(24, 382).prediction.decode_tps
    on_disk = [name for name, tier in found.tiers.items() if tier is Tier.DISK]
    assert on_disk and all("_exps" in name for name in on_disk)


def test_the_context_shrinks_before_anything_goes_to_the_disk() -> None:
    long = on(24, 369, context=163_840)
    assert long.fits and LEAST_CONTEXT <= long.context < long.asked_context == 163_840
    assert on(24, 369, context=long.context + 256).context == long.context


def test_without_a_gpu_everything_is_in_ram() -> None:
    stock = r1("Q2_K")
    found = plan(stock.weights, on_paper(vram=None, ram=382 * GIB), 4096, stock.demands)
    assert found.fits and not found.gpu and not found.disk_bytes
    assert set(found.tiers.values()) == {Tier.RAM}
    assert sizes(found.ram)["MLA cache"] == 61 * 4096 * 576 * 4  # float32 there


def test_a_card_that_is_too_old_is_not_used() -> None:
    machine = on_paper(vram=24 * GIB, ram=382 * GIB)
    old = replace(machine, gpus=(replace(machine.gpus[0], capability=(7, 5)),))
    stock = r1("Q2_K")
    assert not plan(stock.weights, old, 4096, stock.demands).gpu


def test_dense_models_keep_attention_on_the_gpu() -> None:
    """FFNs go to the CPU first, from the last layer on."""
    entry = registry.entries()["r1-distill-14b"]
    stock = inventory.from_rule(config_from_hf(entry.config), "Q4_K_M")
    machine = on_paper(vram=8 * GIB, ram=32 * GIB)
    found = plan(stock.weights, machine, 8192, stock.demands)
    tiers = {kind: {found.tier(w.name) for w in stock.weights if w.kind == kind} for kind in Kind}
    assert tiers[Kind.ATTENTION] == {Tier.GPU}
    assert tiers[Kind.DENSE] == {Tier.GPU, Tier.RAM}
    assert found.tier("blk.0.ffn_up.weight") is Tier.GPU
    assert found.tier("blk.47.ffn_up.weight") is Tier.RAM
    cache_bytes = 2 * 48 * 8 * 128 * 2 * 8192
    assert sizes(found.gpu)["KV cache"] == cache_bytes


def distill_14b(vram: float, context: int = 16_384, prefer_gpu: bool = False) -> Placement:
    entry = registry.entries()["r1-distill-14b"]
    stock = inventory.from_rule(config_from_hf(entry.config), "Q4_K_M")
    machine = on_paper(vram=int(vram * GIB), ram=32 * GIB)
    return plan(stock.weights, machine, context, stock.demands, prefer_gpu)


def test_whole_layers_go_to_the_cpu_where_attention_does_not_fit() -> None:
    """The first ones, as few as will do; their cache lies in RAM, in float32."""
    found = distill_14b(3)
    first = found.cpu_layers
    assert found.fits and found.context == 16_384 and 0 < first < 48
    assert found.tier(f"blk.{first - 1}.attn_output.weight") is Tier.RAM
    assert found.tier(f"blk.{first - 1}.ffn_norm.weight") is Tier.RAM
    assert found.tier(f"blk.{first}.attn_output.weight") is Tier.GPU
    assert found.tier(f"blk.{first}.ffn_up.weight") is Tier.RAM
    assert found.tier("output.weight") is found.tier("output_norm.weight") is Tier.GPU
    gpu, ram = sizes(found.gpu), sizes(found.ram)
    row = 2 * 8 * 128 * 16_384
    assert gpu["KV cache"] == 2 * row * (48 - first)
    assert ram["KV cache"] == 4 * row * first
    layer = gpu["attention"] / (48 - first) + 2 * row
    assert found.gpu_room - found.gpu_bytes < layer * 1.2  # no other one would fit
    assert [distill_14b(vram).cpu_layers for vram in (4, 5, 8)] == [32, 22, 0]


def test_r1_on_a_card_of_8_gib() -> None:
    found = on(8, 400)
    assert found.fits and 0 < found.cpu_layers < 61
    on_gpu = {name for name, tier in found.tiers.items() if tier is Tier.GPU}
    assert not any("_exps" in name for name in on_gpu)
    layers = {int(name.split(".")[1]) for name in on_gpu if name.startswith("blk.")}
    assert layers == set(range(found.cpu_layers, 61))
    assert found.prediction.decode_tps > on(0, 400).prediction.decode_tps


def test_a_gpu_that_makes_nothing_quicker_is_used_if_it_is_asked_for() -> None:
    machine = on_paper(vram=3 * GIB, ram=32 * GIB, ram_bandwidth=400e9, vram_bandwidth=20e9)
    machine = replace(machine, int8_ops=100e12)
    entry = registry.entries()["r1-distill-14b"]
    stock = inventory.from_rule(config_from_hf(entry.config), "Q4_K_M")
    assert not plan(stock.weights, machine, 4096, stock.demands).gpu
    asked = plan(stock.weights, machine, 4096, stock.demands, prefer_gpu=True)
    assert asked.gpu and asked.cpu_layers
    none = with_room(machine, None, GIB)  # not even for a layer
    assert not plan(stock.weights, none, 4096, stock.demands, prefer_gpu=True).gpu


def test_limits_set_by_a_user() -> None:
    machine = on_paper(vram=24 * GIB, ram=64 * GIB)
    assert with_room(machine, 8 * GIB, None).ram_available == 8 * GIB
    assert with_room(machine, None, 6 * GIB).gpus[0].free == 6 * GIB
    assert with_room(machine, None, 0).gpus == ()
