"""Which model, in which quant, would do on a machine: plans side by side, and the best of them.

Not here: how one plan is found (offload.planner), or how any of it is told (localr1.plan).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from localr1 import registry
from localr1.errors import ModelNotFound, Unsupported
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from localr1.models.cache_layout import IN_8_BITS, IN_16_BITS
from localr1.models.inventory import Inventory
from localr1.models.quant_rules import DEFAULTS
from localr1.registry import ModelEntry
from offload import shortage
from offload.hardware import Hardware
from offload.placement import Placement
from offload.planner import LEAST_CONTEXT, plan

DEFAULT_CONTEXT = 16_384
QUICK_ENOUGH = 4.0  # tokens/s that a person can read along with


@dataclass(frozen=True, slots=True)
class Wish:
    """What every plan is asked for: so many tokens of context (None: the usual many), and a GPU's
    cache in the form `cache`, one of cache_layout.CACHES.
    """

    context: int | None = None
    cache: str = IN_16_BITS


ANY = Wish()


@dataclass(frozen=True, slots=True)
class Choice:
    """A model in one quant, and where it would lie with such a cache on a GPU. `exact`: its file
    was opened.
    """

    model: str
    quant: str
    stock: Inventory
    placement: Placement
    exact: bool = False
    cache: str = IN_16_BITS

    @property
    def name(self) -> str:
        """What `localr1 run` takes."""
        return f"{self.model}:{self.quant}" if self.quant else self.model

    @property
    def fits(self) -> bool:
        """Whether nothing of it would have to be read from the disk."""
        return self.placement.fits

    @property
    def decode_tps(self) -> float:
        """Predicted tokens/second."""
        return self.placement.prediction.decode_tps


def planned(
    model: str, quant: str, stock: Inventory, hardware: Hardware, wish: Wish, exact: bool
) -> Choice:
    """The choice of a model whose weights are known."""
    asked = min(wish.context or DEFAULT_CONTEXT, stock.max_context)
    stock = stock.with_cache(wish.cache)
    placement = plan(stock.weights, hardware, asked, stock.demands)
    return Choice(model, quant, stock, placement, exact, wish.cache)


def of_entry(entry: ModelEntry, quant: str, hardware: Hardware, wish: Wish = ANY) -> Choice:
    """A known model in `quant`, by its rule or its size. Raises Unsupported, BadFile."""
    config = config_from_hf(entry.config)
    known = entry.quants.get(quant)
    stock = inventory.from_rule(config, quant, known.nbytes if known else None)
    return planned(entry.name, quant, stock, hardware, wish, False)


def of_file(path: Path, model: str, hardware: Hardware, wish: Wish = ANY) -> Choice:
    """The model in a file or folder. Raises what opening it raises."""
    from localr1.models.source import open_source, read_config

    source = open_source(path)
    stock = inventory.from_source(source, read_config(source))
    quant = registry.quant_of(path.name) if path.is_file() else ""
    quant = quant if quant != registry.stem_of(path.name) else ""
    return planned(model, quant, stock, hardware, wish, True)


def quants(entry: ModelEntry) -> list[str]:
    """Quants of a known model that can be planned: the usual one first, then from big to small."""
    sizes = {name: quant.nbytes for name, quant in entry.quants.items()}
    known = [name for name, nbytes in sizes.items() if nbytes or name in DEFAULTS]
    return sorted(known, key=lambda name: (name != entry.default_quant, -(sizes[name] or 0)))


def best_quant(entry: ModelEntry, hardware: Hardware, wish: Wish = ANY) -> Choice | None:
    """The usual quant if it fits, else the biggest smaller one that does, else the smallest.

    None for a model of which no quant can be planned.
    """
    names = quants(entry)
    if not names:
        return None
    usual = entry.quants[names[0]].nbytes or 0
    found = []
    for name in names:
        if name == names[0] or (entry.quants[name].nbytes or 0) <= usual:
            found.append(of_entry(entry, name, hardware, wish))
            if found[-1].fits:
                return found[-1]
    return found[-1]


def find(model: str, quant: str | None, hardware: Hardware, wish: Wish) -> Choice:
    """What MODEL means on `hardware`: a fetched file exactly, a known name by its quant's rule.

    Raises ModelNotFound, Unsupported, BadFile.
    """
    known = registry.is_known(model)
    if known:
        entry, named = registry.parse(model)
        quant = quant or named
    wanted = f"{entry.name}:{quant}" if known and quant else model
    try:
        resolved = registry.resolve(wanted)
        return of_file(resolved.path, resolved.name.partition(":")[0], hardware, wish)
    except (ModelNotFound, Unsupported):
        if not known or not entry.quants:
            raise
    if quant is None:
        best = best_quant(entry, hardware, wish)
        if best is None:
            raise ModelNotFound(f"no file of {entry.name} has a known size")
        return best
    name = next((name for name in entry.quants if name.lower() == quant.lower()), quant.upper())
    return of_entry(entry, name, hardware, wish)


def everything(hardware: Hardware, wish: Wish) -> Iterator[Choice]:
    """The best quant of every known model that has several."""
    for entry in registry.entries().values():
        if entry.quants and (choice := best_quant(entry, hardware, wish)):
            yield choice


def alternatives(choice: Choice, hardware: Hardware, wish: Wish) -> list[Choice]:
    """What else would do: the usual quant if it was passed over, a smaller quant, a shorter
    context, another model that fits and is quick enough.
    """
    found = []
    entry = registry.entries().get(choice.model)
    if entry:
        found += _other_quants(entry, choice, hardware, wish)
    found += _shorter(choice, hardware)
    found += _other_models(choice, hardware, wish)
    return found


def in_8_bits(choice: Choice, hardware: Hardware) -> Choice | None:
    """The same with a GPU's cache in 8 bits, where that gives the GPU what it had no room for."""
    stock = choice.stock
    roomier = shortage.in_8_bits(stock.weights, hardware, stock.demands, choice.placement)
    if roomier is None:
        return None
    return replace(choice, stock=stock.with_cache(IN_8_BITS), placement=roomier, cache=IN_8_BITS)


def _other_quants(
    entry: ModelEntry, choice: Choice, hardware: Hardware, wish: Wish
) -> list[Choice]:
    names = quants(entry)
    found = []
    if names and choice.quant != names[0]:
        found.append(of_entry(entry, names[0], hardware, wish))
    smaller = [
        of_entry(entry, name, hardware, wish)
        for name in names
        if (entry.quants[name].nbytes or 0) < choice.stock.nbytes * 0.97 and name != choice.quant
    ]
    fitting = [other for other in smaller if other.fits and other.quant != names[0]]
    return found + fitting[:1]


def _shorter(choice: Choice, hardware: Hardware) -> list[Choice]:
    """Half the context, where that makes it fit or quicker."""
    context = choice.placement.context // 2
    if context < LEAST_CONTEXT:
        return []
    half = Wish(context, choice.cache)
    other = planned(choice.model, choice.quant, choice.stock, hardware, half, choice.exact)
    better = other.decode_tps > 1.05 * choice.decode_tps or (other.fits and not choice.fits)
    return [other] if better else []


def _usual_bytes(entry: ModelEntry) -> int:
    names = quants(entry)
    return (entry.quants[names[0]].nbytes or 0) if names else 0


def _other_models(choice: Choice, hardware: Hardware, wish: Wish) -> list[Choice]:
    """The two biggest smaller models that fit and are quick enough, else the smallest that fits.

    For a model of R1's family only those that reason as it does.
    """
    own = registry.entries().get(choice.model)
    family = "R1" if own and "R1" in own.title else ""
    smaller = [
        entry
        for entry in registry.entries().values()
        if family in entry.title and 0 < _usual_bytes(entry) < choice.stock.nbytes
    ]
    plans = [best_quant(entry, hardware, wish) for entry in smaller]
    others = [
        other
        for other in plans
        if other and other.fits and other.stock.parameters < choice.stock.parameters * 0.9
    ]
    others.sort(key=lambda other: -other.stock.parameters)
    quick = [other for other in others if other.decode_tps >= QUICK_ENOUGH]
    return (quick or others[-1:])[:2]
