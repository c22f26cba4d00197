"""When an 8-bit cache is a way out, and when it is not."""

from __future__ import annotations

from localr1 import registry
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from localr1.models.cache_layout import IN_8_BITS
from localr1.models.inventory import Inventory
from offload.hardware import on_paper
from offload.placement import Placement
from offload.planner import plan
from offload.shortage import in_8_bits

GIB = 1 << 30


def stock_of(model: str) -> Inventory:
    entry = registry.entries()[model]
    return inventory.from_rule(config_from_hf(entry.config), "Q4_K_M")


def planned(
    stock: Inventory, vram: float, ram: int, context: int
) -> tuple[Placement, Placement | None]:
    machine = on_paper(vram=int(vram * GIB) or None, ram=ram * GIB)
    found = plan(stock.weights, machine, context, stock.demands)
    return found, in_8_bits(stock.weights, machine, stock.demands, found)


def test_a_context_that_shrank_can_be_longer() -> None:
    stock = stock_of("r1-distill-7b")
    found, roomier = planned(stock, 6, 8, 131_072)
    assert roomier is not None and found.context < roomier.context <= 131_072
    narrow = stock.with_cache(IN_8_BITS)
    assert planned(narrow, 6, 8, 131_072) == (roomier, None)  # it has been taken


def test_a_gpu_without_room_can_have_some() -> None:
    found, roomier = planned(stock_of("deepseek-r1"), 3.8, 512, 131_072)
    assert not found.gpu and found.context == 131_072
    assert roomier is not None and roomier.gpu and roomier.context == 131_072


def test_fewer_layers_can_be_left_to_the_cpu() -> None:
    found, roomier = planned(stock_of("deepseek-r1"), 18, 512, 131_072)
    assert found.cpu_layers and found.context == 131_072
    assert roomier is not None and roomier.gpu and roomier.context == 131_072
    assert not roomier.cpu_layers


def test_where_all_has_room_or_there_is_no_gpu_it_is_not_told() -> None:
    stock = stock_of("r1-distill-7b")
    assert planned(stock, 24, 32, 16_384)[1] is None
    assert planned(stock, 0, 8, 131_072)[1] is None
    assert planned(stock, 2, 32, 16_384)[1] is None  # not one layer fits
