"""Which model, in which quant, would do on a machine: plans side by side, and the best of them.

Not here: how one plan is found (offload.planner), or how any of it is told (localr1.plan).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localr1 import registry
from localr1.errors import ModelNotFound, Unsupported
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from localr1.models.inventory import Inventory
from localr1.models.quant_rules import DEFAULTS
from localr1.registry import ModelEntry
from offload.hardware import Hardware
from offload.placement import Placement
from offload.planner import LEAST_CONTEXT, plan

DEFAULT_CONTEXT = 16_384
QUICK_ENOUGH = 4.0  # tokens/s that a person can read along with


@dataclass(frozen=True, slots=True)
class Choice:
    """A model in one quant, and where it would lie. `exact`: its file was opened."""

    model: str
    quant: str
    stock: Inventory
    placement: Placement
    exact: bool = False

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
    model: str, quant: str, stock: Inventory, hardware: Hardware, context: int | None, exact: bool
) -> Choice:
    """The choice of a model whose weights are known; `context` None: the usual one."""
    asked = min(context or DEFAULT_CONTEXT, stock.max_context)
    return Choice(model, quant, stock, plan(stock.weights, hardware, asked, stock.demands), exact)


def of_entry(
    entry: ModelEntry, quant: str, hardware: Hardware, context: int | None = None
) -> Choice:
    """A known model in `quant`, by its rule or its size. Raises Unsupported, BadFile."""
    config = config_from_hf(entry.config)
    known = entry.quants.get(quant)
    stock = inventory.from_rule(config, quant, known.nbytes if known else None)
    return planned(entry.name, quant, stock, hardware, context, False)


def of_file(path: Path, model: str, hardware: Hardware, context: int | None = None) -> Choice:
    """The model in a file or folder. Raises what opening it raises."""
    from localr1.models.source import open_source, read_config

    source = open_source(path)
    stock = inventory.from_source(source, read_config(source))
    quant = registry.quant_of(path.name) if path.is_file() else ""
    quant = quant if quant != registry.stem_of(path.name) else ""
    return planned(model, quant, stock, hardware, context, True)


def quants(entry: ModelEntry) -> list[str]:
    """Quants of a known model that can be planned: the usual one first, then from big to small."""
    sizes = {name: quant.nbytes for name, quant in entry.quants.items()}
    known = [name for name, nbytes in sizes.items() if nbytes or name in DEFAULTS]
    return sorted(known, key=lambda name: (name != entry.default_quant, -(sizes[name] or 0)))


def best_quant(entry: ModelEntry, hardware: Hardware, context: int | None = None) -> Choice | None:
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
            found.append(of_entry(entry, name, hardware, context))
            if found[-1].fits:
                return found[-1]
    return found[-1]


def find(model: str, quant: str | None, hardware: Hardware, context: int | None) -> Choice:
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
        return of_file(resolved.path, resolved.name.partition(":")[0], hardware, context)
    except (ModelNotFound, Unsupported):
        if not known or not entry.quants:
            raise
    if quant is None:
        best = best_quant(entry, hardware, context)
        if best is None:
            raise ModelNotFound(f"no file of {entry.name} has a known size")
        return best
    name = next((name for name in entry.quants if name.lower() == quant.lower()), quant.upper())
    return of_entry(entry, name, hardware, context)


def everything(hardware: Hardware, context: int | None) -> Iterator[Choice]:
    """The best quant of every known model that has several."""
    for entry in registry.entries().values():
        if entry.quants and (choice := best_quant(entry, hardware, context)):
            yield choice


def alternatives(choice: Choice, hardware: Hardware, context: int | None) -> list[Choice]:
    """What else would do: the usual quant if it was passed over, a smaller quant, a shorter
    context, another model that fits and is quick enough.
    """
    found = []
    entry = registry.entries().get(choice.model)
    if entry:
        found += _other_quants(entry, choice, hardware, context)
    found += _shorter(choice, hardware)
    found += _other_models(choice, hardware, context)
    return found


def _other_quants(
    entry: ModelEntry, choice: Choice, hardware: Hardware, context: int | None
) -> list[Choice]:
    names = quants(entry)
    found = []
    if names and choice.quant != names[0]:
        found.append(of_entry(entry, names[0], hardware, context))
    smaller = [
        of_entry(entry, name, hardware, context)
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
    other = planned(choice.model, choice.quant, choice.stock, hardware, context, choice.exact)
    better = other.decode_tps > 1.05 * choice.decode_tps or (other.fits and not choice.fits)
    return [other] if better else []


def _usual_bytes(entry: ModelEntry) -> int:
    names = quants(entry)
    return (entry.quants[names[0]].nbytes or 0) if names else 0


def _other_models(choice: Choice, hardware: Hardware, context: int | None) -> list[Choice]:
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
    plans = [best_quant(entry, hardware, context) for entry in smaller]
    others = [
        other
        for other in plans
        if other and other.fits and other.stock.parameters < choice.stock.parameters * 0.9
    ]
    others.sort(key=lambda other: -other.stock.parameters)
    quick = [other for other in others if other.decode_tps >= QUICK_ENOUGH]
    return (quick or others[-1:])[:2]
