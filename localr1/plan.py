"""What `localr1 plan` says: a card for a person, JSON for a program, and why a weight lies where it
does.

Text only: the choices come from localr1.choices, their plans from offload.planner.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import Any

from localr1.choices import Choice
from localr1.errors import LocalR1Error
from localr1.models.cache_layout import IN_8_BITS
from localr1.progress import duration
from offload.hardware import Hardware
from offload.placement import Item, Kind, Tier, Weight, layers_named
from offload.planner import CAPABILITY, usable_gpu
from offload.predict import DEPTH, PROMPT

_GIB, _GB = 1 << 30, 1e9
_WIDTH = 79
_COLUMN = 37
_WORDS = {
    "ram_bandwidth": "RAM {:.0f} GB/s",
    "gpu.bandwidth": "VRAM {:.0f} GB/s",
    "gpu.pcie": "PCIe {:.0f} GB/s",
    "int8_ops": "CPU {:.1f} int8 TOP/s",
    "disk_bandwidth": "disk {:.1f} GB/s",
}


def gib(nbytes: float) -> str:
    """`366.9 GiB`, one place behind the point below 1,000."""
    return f"{nbytes / _GIB:,.1f} GiB"


def size(nbytes: float) -> str:
    """`6.10 GiB`, `9.6 MiB`: the line of an item."""
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB / 10 else f"{nbytes / (1 << 20):.1f} MiB"


def decimal(nbytes: float) -> str:
    """`404.6 GB`, `16 MB`: as the hub counts."""
    return f"{nbytes / _GB:.1f} GB" if nbytes >= _GB / 10 else f"{nbytes / 1e6:.0f} MB"


def speed(tokens_per_second: float) -> str:
    """Tokens a second with two or three digits: `0.25`, `9.7`, `96`."""
    if tokens_per_second < 1:
        return f"{tokens_per_second:.2f}"
    return f"{tokens_per_second:.{1 if tokens_per_second < 20 else 0}f}"


def verdict(choice: Choice, roomier: Choice | None = None) -> str:
    """One sentence: whether it fits, at which context, and what is missing. `roomier`: the same
    with an 8-bit cache, where that has room for more.
    """
    plan = choice.placement
    context = f"a context of {plan.context:,} tokens"
    way_out = ""
    if roomier and (roomier.placement.context > plan.context or not plan.gpu):
        way_out = f"; --cache 8bit makes room for {roomier.placement.context:,}"
    if plan.context < plan.asked_context:
        context += f" ({plan.asked_context:,} would not fit{way_out})"
    elif way_out:
        context += f"{way_out} on the GPU"
    if plan.cpu_layers:
        context += f", {layers_named(0, plan.cpu_layers)} on the CPU"
        if roomier and not way_out:
            fewer = layers_named(0, roomier.placement.cpu_layers)
            context += f" (--cache 8bit leaves {fewer} there)"
    if plan.fits:
        where = {"GPU + RAM": "GPU and RAM", "GPU": "the GPU"}.get(_where(choice), "RAM")
        return f"{choice.name} fits {where} with {context}."
    short = f"{choice.name} does not fit: {gib(plan.shortfall)} of RAM are missing"
    if not plan.works:
        return f"{short}, and it cannot run from the disk either."
    on_disk = f"{gib(plan.disk_bytes)} would be read from the disk, again and again"
    return f"{short}; with --residency mapped {on_disk}."


def _instead(choice: Choice, others: Sequence[Choice]) -> str:
    """The best of the others that fits, where the choice does not; one sentence, or none."""
    fitting = [other for other in others if other.fits]
    if choice.fits or not fitting:
        return ""
    tps = speed(fitting[0].decode_tps)
    return f" {fitting[0].name} fits, and writes {tps} tokens/s."


def _weights_in_ram(choice: Choice) -> bool:
    kinds = {weight.kind for weight in _in_tier(choice, Tier.RAM)}
    return bool(kinds - {Kind.EMBEDDING, Kind.UNUSED})


def _in_tier(choice: Choice, tier: Tier) -> list[Weight]:
    return [w for w in choice.stock.weights if choice.placement.tier(w.name) is tier]


def card(
    choice: Choice,
    hardware: Hardware,
    others: Sequence[Choice],
    given: Collection[str] = (),
    roomier: Choice | None = None,
) -> str:
    """The plan for a person: verdict, where what lies, speeds and their limits, other choices.

    `given`: facts of `hardware` that its user typed; `roomier` as for `verdict`.
    """
    parts = [
        textwrap.fill(verdict(choice, roomier) + _instead(choice, others), _WIDTH),
        _places(choice),
        _speeds(choice),
        _footing(choice, hardware, given),
    ]
    if others:
        parts.append("other choices\n" + table(others, choice.placement.context))
    return "\n\n".join(part for part in parts if part)


def _places(choice: Choice) -> str:
    plan = choice.placement
    columns = []
    if plan.gpu:
        title = f"GPU    {gib(plan.gpu_bytes)} of {gib(plan.gpu_room)}"
        columns.append(_column(title, plan.gpu))
    columns.append(_column(f"RAM    {gib(plan.ram_bytes)} of {gib(plan.ram_room)}", plan.ram))
    if plan.cpu_layers:
        ends = (plan.cpu_layers, choice.stock.demands.n_layers), (0, plan.cpu_layers)
        for column, (first, end) in zip(columns, ends, strict=True):
            column.insert(1, f"  {layers_named(first, end)}")
    if not plan.fits:
        columns[-1] += ["", *_column(f"disk   {gib(plan.disk_bytes)}", plan.disk)]
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join("  ".join(cell.ljust(_COLUMN) for cell in row).rstrip() for row in rows)


def _column(title: str, items: Sequence[Item]) -> list[str]:
    rows = [item for item in items if item.name != Kind.UNUSED]
    return [title, *(f"  {item.name:<18}{size(item.nbytes):>12}" for item in rows)]


def _speeds(choice: Choice) -> str:
    p = choice.placement.prediction
    share = 100 * p.decode_tps / p.decode_limit_tps
    loading = duration(max(1, p.load_seconds))
    streams = choice.placement.streams_from
    lines = (
        f"writes {speed(p.decode_tps):>6} tokens/s   {share:.0f} % of the "
        f"{speed(p.decode_limit_tps)} that {p.decode_limit} allows",
        f"reads  {speed(p.prefill_tps):>6} tokens/s   of a prompt of {PROMPT} tokens, bound by "
        f"{p.prefill_limit}",
        f"experts come to the GPU for prompts of {streams:,} tokens or more" if streams else "",
        f"loads in {loading} from the disk; at once where the page cache holds it",
    )
    return "\n".join(line for line in lines if line)


def _footing(choice: Choice, hardware: Hardware, given: Collection[str]) -> str:
    """What the figures rest on."""
    facts = {
        "ram_bandwidth": hardware.ram_bandwidth / _GB,
        "int8_ops": hardware.int8_ops / 1e12,
        "disk_bandwidth": hardware.disk_bandwidth / _GB,
    }
    gpu = usable_gpu(hardware)
    if choice.placement.gpu and gpu:
        facts |= {"gpu.bandwidth": gpu.bandwidth / _GB, "gpu.pcie": gpu.pcie / _GB}
    lines = []
    told: dict[str, list[str]] = {"given": [], "measured": [], "assumed": []}
    for name, value in facts.items():
        word = "assumed" if name in hardware.assumed else "measured"
        told["given" if name in given else word].append(_WORDS[name].format(value))
    for word, texts in told.items():
        if texts:  # broken between facts, not inside them
            whole = ", ".join(text.replace(" ", "\xa0") for text in texts)
            rows = textwrap.wrap(f"{word}: {whole}", _WIDTH)
            lines += [row.replace("\xa0", " ") for row in rows]
    source = "by its quant's rule, within 0.2 %"
    if choice.exact:
        source = "of the file itself"
    elif choice.stock.approximate:
        source = "from the size of its files, about"
    lines.append(f"weights: {decimal(choice.stock.nbytes)} {source}")
    if choice.placement.gpu:
        lines.append("GPU speeds are estimates from an H100")
    elif choice.cache == IN_8_BITS:
        lines.append("--cache 8bit is for a GPU: on the CPU the cache is kept in 32 bits")
    if hardware.gpus and not gpu:
        needed = ".".join(map(str, CAPABILITY))
        lines.append(f"the GPU is too old: kernels need compute capability {needed}")
    return "\n".join(lines)


def table(choices: Sequence[Choice], context: int = 0) -> str:
    """Models by rows: size, whether they fit, speeds."""
    rows = [("MODEL", "SIZE", "FITS", "CONTEXT", "WRITES", "READS")]
    for choice in choices:
        plan, p = choice.placement, choice.placement.prediction
        short = f"{plan.shortfall / _GIB:,.0f} GiB short" if plan.works else "no"
        rows.append((
            choice.name,
            decimal(choice.stock.nbytes),
            _where(choice) if plan.fits else short,
            f"{plan.context:,}",
            f"{speed(p.decode_tps)} tok/s" if plan.works else "-",
            f"{speed(p.prefill_tps)} tok/s" if plan.works else "-",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    left = (0, 2)  # columns of words; numbers stand to the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _where(choice: Choice) -> str:
    if not choice.placement.gpu:
        return "RAM"
    return "GPU + RAM" if _weights_in_ram(choice) else "GPU"


def to_json(choice: Choice, others: Sequence[Choice]) -> dict[str, Any]:
    """The plan for a program: sizes in bytes, speeds in tokens/second."""
    plan = choice.placement
    return {
        **_short_json(choice),
        "asked_context": plan.asked_context,
        "cpu_layers": plan.cpu_layers,
        "streams_from": plan.streams_from,
        "gpu": _tier_json(plan.gpu),
        "ram": _tier_json(plan.ram),
        "disk": _tier_json(plan.disk),
        "alternatives": [_short_json(other) for other in others],
    }


def _tier_json(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "bytes": sum(item.nbytes for item in items),
        "items": [{"name": item.name, "bytes": item.nbytes} for item in items],
    }


def _short_json(choice: Choice) -> dict[str, Any]:
    plan, p = choice.placement, choice.placement.prediction
    return {
        "model": choice.model,
        "quant": choice.quant,
        "cache": choice.cache,
        "fits": plan.fits,
        "context": plan.context,
        "bytes": choice.stock.nbytes,
        "shortfall": plan.shortfall,
        "predicted": {
            "decode_tps": p.decode_tps,
            "prefill_tps": p.prefill_tps,
            "decode_limit_tps": p.decode_limit_tps,
            "load_seconds": p.load_seconds,
        },
    }


def listing_json(choices: Sequence[Choice]) -> dict[str, Any]:
    """Every model's best plan in short."""
    return {"models": [_short_json(choice) for choice in choices]}


def explain(choice: Choice, name: str) -> str:
    """Why the weights called `name` (a whole name, or a part of one) lie where they do."""
    weights = [w for w in choice.stock.weights if name == w.name]
    weights = weights or [w for w in choice.stock.weights if name in w.name or name == w.kind]
    if not weights:
        names = sorted({re.sub(r"^blk\.\d+\.|\.weight$", "", w.name) for w in choice.stock.weights})
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or names[:4]
        hint = f"it has {', '.join(near)} and others; `localr1 plan` names their kinds"
        raise LocalR1Error(f"{choice.name} has no weight {name!r}", hint)
    paragraphs = []
    for kind, tier in dict.fromkeys((w.kind, choice.placement.tier(w.name)) for w in weights):
        group = [w for w in weights if (w.kind, choice.placement.tier(w.name)) == (kind, tier)]
        paragraphs.append(textwrap.fill(_why(choice, group, kind, tier), _WIDTH))
    return "\n\n".join(paragraphs)


def _why(choice: Choice, weights: list[Weight], kind: Kind, tier: Tier) -> str:
    plan = choice.placement
    total = sum(weight.bytes_in(tier) for weight in weights)
    what = (
        weights[0].name if len(weights) == 1 else f"{len(weights)} weights, from {weights[0].name}"
    )
    read = sum(weight.bytes_in(tier) * weight.read_fraction for weight in weights)
    head = (
        f"{what} ({kind.value}, {size(total)}, of which a token reads {size(read)}): "
        f"{'VRAM' if tier is Tier.GPU else tier.name if tier is Tier.RAM else 'the disk'}."
    )
    return f"{head} {_reason(choice, kind, tier, plan.gpu_room - plan.gpu_bytes)}"


def _reason(choice: Choice, kind: Kind, tier: Tier, spare: int) -> str:
    plan = choice.placement
    if kind == Kind.UNUSED:
        return "No token reads it: the file's header, or the layer for predicting two tokens."
    if kind == Kind.EMBEDDING and tier is Tier.RAM:
        return (
            f"A token looks up one of its rows; VRAM is for what is read whole ({DEPTH:,} times)."
        )
    if tier is Tier.GPU:
        order = "attention, shared experts, head, dense layers, routed experts by layer"
        return f"VRAM is given out in this order: {order}; it reached this far."
    if tier is Tier.DISK:
        return f"{gib(plan.ram_room)} of RAM were given out before its turn came."
    if not plan.gpu:
        return "There is no GPU in this plan, so everything lies in RAM."
    if plan.cpu_layers and kind in (Kind.ATTENTION, Kind.ROUTER, Kind.SHARED):
        there = layers_named(0, plan.cpu_layers)
        return f"VRAM has no room for the attention of all layers: the CPU runs {there} as a whole."
    return f"VRAM was given out before its turn came: {gib(spare)} are left, and more is needed."
