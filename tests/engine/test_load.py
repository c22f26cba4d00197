"""The loader does what the plan says: same numbers, shorter contexts, refusals with ways out."""

from __future__ import annotations

import pytest

import localr1
from localr1 import registry
from localr1.engine import device, load
from localr1.errors import USAGE, DoesNotFit, LocalR1Error, Unsupported
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from localr1.models.source import open_source, read_config
from offload.hardware import on_paper
from offload.placement import Tier
from offload.planner import LEAST_CONTEXT, plan
from offload.shortage import in_8_bits
from tests import toy

IDS = [5, 6, 7, 8]


def room_for(context: int) -> int:
    """The least RAM in which tiny-r1 fits with a context of so many tokens."""
    source = open_source(toy.TINY_R1)
    stock = inventory.from_source(source, read_config(source))
    low, high = 0, 1 << 33
    while high - low > 1:
        middle = (low + high) // 2
        found = plan(stock.weights, on_paper(vram=None, ram=middle), context, stock.demands)
        fits = found.fits and found.context == context
        low, high = (low, middle) if fits else (middle, high)
    return high


def test_the_engine_holds_the_plan() -> None:
    llm = localr1.load("tiny-r1", context=256)
    found = llm.engine.placement
    assert found is not None and found.fits
    assert llm.engine.max_context == found.context == 256
    assert set(found.tiers.values()) == {Tier.RAM}
    cache = next(item for item in found.ram if item.name == "MLA cache")
    assert cache.nbytes == llm.engine.cache.rows.nbytes


def test_the_plan_is_exact_at_its_edge() -> None:
    room = room_for(512)
    llm = localr1.load("tiny-r1", context=512, ram=room)
    assert llm.engine.max_context == 512
    assert llm.logits(IDS).shape == (4, 768)
    with pytest.raises(DoesNotFit) as caught:
        localr1.load("tiny-r1", context=512, ram=room - (1 << 20))
    assert caught.value.code == 4
    assert "--residency mapped" in caught.value.hint


def test_the_context_shrinks_before_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-r1 holds 2,048 tokens, so the least worth shrinking to is made less here."""
    monkeypatch.setattr("offload.planner.LEAST_CONTEXT", 256)
    room = room_for(1024)
    llm = localr1.load("tiny-r1", context=2048, ram=room)
    assert llm.engine.max_context == 1024
    assert llm.engine.placement is not None
    assert llm.engine.placement.asked_context == 2048
    assert [note.startswith("memory is short") for note in llm.engine.notes] == [True]
    assert llm.logits(IDS).shape == (4, 768)


def notes_of(name: str, vram: int, ram: int, context: int) -> tuple[list[str], list[str]]:
    """What a load on such a machine (GiB) says: with the plan of an 8-bit cache, without."""
    stock = inventory.from_rule(config_from_hf(registry.entries()[name].config), "Q4_K_M")
    machine = on_paper(vram=vram << 30, ram=ram << 30)
    found = plan(stock.weights, machine, context, stock.demands)
    roomier = in_8_bits(stock.weights, machine, stock.demands, found)
    runner = localr1.load("tiny-r1", device="cpu", context=64).engine.runner
    both = (load.notes("", runner, found, "16bit", other) for other in (roomier, None))
    return next(both), next(both)


def test_an_8bit_cache_is_a_way_out_of_a_short_context() -> None:
    (note,), _ = notes_of("r1-distill-7b", 6, 8, 131_072)
    assert "--cache 8bit makes room for 110,848" in note


def test_layers_that_are_left_to_the_cpu_are_told() -> None:
    (note,), alone = notes_of("r1-distill-14b", 3, 32, 16_384)
    told = "the CPU runs layers 0-41, for which the GPU has no room"
    assert note == f"{told}; --cache 8bit leaves layers 0-38 to the CPU"
    assert alone == [told]


def test_an_8bit_cache_is_for_a_gpu() -> None:
    """On the CPU the model runs with the cache it always has, and says so."""
    llm = localr1.load("tiny-r1", device="cpu", context=64, cache="8bit")
    assert llm.engine.notes == ["the cache is kept in 32 bits: --cache 8bit is for a GPU"]
    assert llm.engine.cache.layout == "4 x 160 float32"
    with pytest.raises(LocalR1Error, match="'4bit' is no cache") as caught:
        localr1.load("tiny-r1", cache="4bit")
    assert caught.value.code == USAGE


def test_ram_that_is_not_there_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ram=` cannot be more than what is free, which is measured at every start."""
    monkeypatch.setattr(device, "available_bytes", lambda: 64 << 20)
    with pytest.raises(DoesNotFit, match=r"0\.06 GiB is free"):
        localr1.load("tiny-r1", ram="500GiB")
    assert LEAST_CONTEXT > 0


def test_a_gpu_that_is_not_there_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.gpus, "look", lambda: ())  # on a machine that has one too
    with pytest.raises(Unsupported, match="GPU"):
        localr1.load("tiny-r1", device="cuda")
    with pytest.raises(LocalR1Error, match="no device"):
        localr1.load("tiny-r1", device="tpu")
