"""`localr1 bench --synthetic MODEL`: a model's full shapes with random weights, nothing downloaded.

The real engine runs: on a GPU for which there are kernels, attention, shared experts and head there
in one CUDA graph with the routed experts in RAM, or a dense model with as many FFNs there as have
room; else all on the CPU. Only the choice of experts is replaced, by a random one for every layer
and token. Shares are of the limit that the memories' bandwidths set, RAM's measured between the
tokens (read_speed.py). Not here: what lies where (synthetic_plan.py), running it
(synthetic_run.py), how the result is told (synthetic_card.py), real files (bench.py), the kernels
alone (bench_kernels.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

import cpu_experts
from cpu_experts import amx
from cpu_experts.bandwidth import vnni_operations_per_second
from cpu_experts.bench import MOST
from cpu_experts.cpu import last_cache_bytes
from localr1 import ram_peak, registry, synthetic_card
from localr1.bench import Row, machine
from localr1.engine.device import AUTO, CUDA, room
from localr1.engine.runner import SUPER_CHUNK
from localr1.errors import USAGE, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.machine import hardware
from localr1.models import inventory
from localr1.models.architecture import Config, config_from_hf
from localr1.models.cache_layout import IN_16_BITS
from localr1.models.config import ModelConfig
from localr1.models.inventory import Inventory
from localr1.models.quant_rules import DEFAULTS
from localr1.progress import ProgressLine
from localr1.read_speed import ReadSpeed
from localr1.synthetic_plan import InRam, in_ram, planned, projections, traffic
from localr1.synthetic_run import WARM, SyntheticRun, TokenSeconds, asked
from offload.hardware import Gpu, Hardware
from offload.placement import Kind, Placement
from offload.planner import usable_gpu
from offload.predict import DEPTH

Report = Callable[[Progress], None]

_PEAK_SECONDS = 0.5
_WEIGHTS = {kind.value for kind in Kind} - {Kind.ROUTER.value}  # norms are there as they are


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. Sizes in bytes; None: all that is there."""

    quant: str | None = None  # None: what MODEL names, or Q4_K_M
    device: str = AUTO
    cache: str = IN_16_BITS
    vram: int | None = None
    ram: int | None = None  # for routed experts, or what a dense model keeps in RAM
    context: int = 8192
    layers: int | None = None
    stub: bool = False  # experts that answer at once
    prefill: int = 0  # tokens of a prompt to read too
    tokens: int = 20
    threads: int | None = None


def main(model: str, options: Options, as_json: bool) -> None:
    """Measure and print: the card, then one line of JSON. A share above 1.02 is an error."""
    result = run(model, options)
    if not as_json:
        print(synthetic_card.card(result))
    print(json.dumps(result))
    refuse_impossible(result["rows"])


def run(model: str, options: Options) -> dict[str, Any]:
    """Measure a known model (`NAME[:QUANT]`); what the line of JSON holds.

    Raises ModelNotFound, Unsupported (shapes not known, a quant without a rule), DoesNotFit.
    """
    entry, named = registry.parse(model)
    quant = options.quant or named or "Q4_K_M"
    known = {name.lower(): name for name in DEFAULTS if name != "F32"}
    if quant.lower() not in known:
        hint = f"known are {', '.join(known.values())}"
        raise Unsupported(f"which types a file of {quant} has cannot be said", hint)
    options = replace(options, quant=known[quant.lower()])
    config = _config(entry, options)
    with ProgressLine(sys.stderr) as progress:
        found = _machine(options, progress.show)
        return measure(f"{entry.name}:{options.quant}", config, options, found, progress.show)


def _machine(options: Options, report: Report) -> Hardware:
    """This one, with the GPU that torch calls "cuda" if one is to be used."""
    place = room(options.device, None, options.vram, options.threads, report)
    if place.problem:
        print(place.problem, file=sys.stderr)
    if place.gpu is None and options.device == CUDA:
        raise LocalR1Error("--device cuda has no use for --vram 0", "leave one out", USAGE)
    found = hardware(report=report, threads=options.threads)
    return replace(found, gpus=found.gpus[:1] if place.gpu is not None else ())


def _config(entry: registry.ModelEntry, options: Options) -> Config:
    if not entry.config:
        hint = "deepseek-r1 and r1-distill-7b are; `localr1 list` shows all"
        raise Unsupported(f"{entry.name} is not a model of known shapes", hint)
    layers = options.layers or int(entry.config["num_hidden_layers"])
    config = config_from_hf({**entry.config, "num_hidden_layers": layers})
    if isinstance(config, ModelConfig) and layers <= config.n_dense_layers:
        hint = f"--layers starts at {config.n_dense_layers + 1} for {entry.name}"
        raise LocalR1Error(f"{layers} layers hold no routed experts", hint, USAGE)
    least = max(options.tokens + WARM + 2, options.prefill)
    if not least <= options.context <= config.max_context:
        hint = f"--context goes from {least} to {config.max_context:,}"
        raise LocalR1Error(f"the context is {options.context:,} tokens", hint, USAGE)
    return config


def measure(
    name: str,
    config: Config,
    options: Options,
    found: Hardware,
    report: Report = lambda progress: None,
) -> dict[str, Any]:
    """Build and measure a model of `config` on the machine `found`, on its GPU if it has one; see
    `run`.
    """
    cpu_experts.set_threads(options.threads)
    quant = options.quant or "Q4_K_M"
    stock, gpu = inventory.from_rule(config, quant, newer=True), _gpu(found, options.vram)
    stock = stock.with_cache(options.cache)
    if gpu is None and options.cache != IN_16_BITS:
        hint = "leave it out: on the CPU the cache is kept in 32 bits"
        raise LocalR1Error(f"--cache {options.cache} is for a GPU", hint, USAGE)
    placed = planned(stock, gpu, found, options.context)
    kept = in_ram(stock, placed, gpu is not None)
    if options.stub and not asked(config, kept.names, gpu is not None):
        hint = "leave out --stub, or ask for less --vram"
        raise LocalR1Error("no layer of this asks the CPU for experts or FFNs", hint, USAGE)
    ram_peak.forget()
    subject = SyntheticRun(
        config, quant, options.context, kept.names, options.ram, gpu is not None, options.cache,
        placed.streams_from, report,
    )  # fmt: skip
    rows = []
    if options.prefill:
        rows += _prefill(subject, stock, kept, options.prefill, gpu)
    speed = ReadSpeed(subject.weights.measured)
    apart = bool(subject.banks) and not options.stub
    experts = subject.experts_seconds(options.tokens) if apart else None
    times = subject.decode_seconds(options.tokens, options.stub, speed.again)
    limits = _limits(subject, stock, kept, gpu, options, speed)
    rows += _decode(times, experts, kept.title, limits, options)
    loads = subject.seconds.items()
    meanwhile = replace(found, ram_bandwidth=limits["read_bandwidth"] * 1e9)
    again = planned(stock, gpu, meanwhile, options.context)
    cards = projections(stock, meanwhile, options.context, _depth(options))
    return {
        "machine": {**machine(), "isa": cpu_experts.tier(), "gpu": asdict(gpu) if gpu else None},
        "model": name,
        "synthetic": {
            "layers": config.n_layers,
            "context": options.context,
            "cache": options.cache,
            "depth": options.context - options.tokens - WARM - 1,
            "stub": options.stub,
            "in_ram": kept.title,
            "routed_bytes": subject.weights.routed_bytes,
            "distinct_bytes": subject.weights.distinct_bytes,
        },
        "limits": limits,
        "plan": _plan_facts(placed, again, subject, found, options.stub),
        "projections": [] if options.stub else list(cards),
        "rows": [asdict(_row(name, "load", 0, seconds, "s")) for name, seconds in loads]
        + [asdict(row) for row in rows],
    }


def _row(
    name: str,
    phase: Literal["load", "prefill", "decode"],
    tokens: int,
    value: float,
    unit: str,
    share: float | None = None,
) -> Row:
    return Row(name, phase, tokens, cpu_experts.get_threads(), value, unit, share)


def _gpu(found: Hardware, vram: int | None) -> Gpu | None:
    """The GPU to run on, as if it had `vram` bytes; None for the CPU."""
    gpu = usable_gpu(found)
    if gpu is None or vram is None:
        return gpu
    return replace(gpu, total=min(gpu.total, vram), free=min(gpu.free, vram - vram // 64))


def _depth(options: Options) -> int:
    """Tokens behind which the limit is meant."""
    return options.context - options.tokens


def _prefill(
    subject: SyntheticRun, stock: Inventory, kept: InRam, tokens: int, gpu: Gpu | None
) -> list[Row]:
    """Of a prompt; beside a GPU with the share of what the CPU's int8 arithmetic allows, or, where
    its experts come to the GPU, with that beside it, and with the share of PCIe that they take.
    """
    seconds, share = subject.prefill_seconds(tokens), None
    weights = [weight for weight in stock.weights if weight.name in kept.names]
    rows = []
    if gpu is not None and weights and cpu_experts.tier() == "avx512_vnni":
        operations = sum(2 * weight.values * weight.read_fraction for weight in weights)
        limit = vnni_operations_per_second(_PEAK_SECONDS) / operations
        share = tokens / seconds / limit
        rows.append(_row("CPU's int8 limit", "prefill", tokens, limit, "tokens/s"))
    if gpu is not None and subject.streams(tokens):
        share, sent = None, sum(weight.nbytes for weight in weights) * -(-tokens // SUPER_CHUNK)
        speed = sent / seconds
        rows.append(
            _row("experts to the GPU", "prefill", tokens, speed / 1e9, "GB/s", speed / gpu.pcie)
        )
    return [_row("prefill", "prefill", tokens, tokens / seconds, "tokens/s", share), *rows]


def _limits(
    subject: SyntheticRun, stock: Inventory, kept: InRam, gpu: Gpu | None, options: Options,
    speed: ReadSpeed,
) -> dict[str, Any]:  # fmt: skip
    """What the memories' bandwidths allow; bytes that one token reads."""
    bandwidth, working_set = speed.bandwidth, speed.working_set
    read = traffic(stock, kept, _depth(options), options.stub)
    ram, vram = (read.ram, read.alone) if gpu else (read.ram + read.alone + read.shared, 0.0)
    # What fits a cache is not read from memory, and memory is then no limit.
    if kept.names:
        applies = subject.weights.distinct_bytes > last_cache_bytes()
    else:
        applies = vram > torch.cuda.get_device_properties(0).L2_cache_size
    return {
        "read_bandwidth": bandwidth / 1e9,
        "read_bandwidth_unit": "GB/s",
        "read_bandwidth_method": f"prefetched reads of {working_set / 1e9:.1f} GB",
        "working_set_per_last_cache": working_set / last_cache_bytes(),
        "vram_bandwidth": gpu.bandwidth / 1e9 if gpu else None,
        "routed_bytes_per_token": read.ram,
        "ram_bytes_per_token": ram,
        "vram_bytes_per_token": vram,
        "decode": 1 / read.seconds(bandwidth, gpu.bandwidth if gpu else None),
        "decode_unit": "tokens/s",
        "applies": applies,
    }


def _decode(
    times: TokenSeconds, experts: float | None, title: str, limits: dict[str, Any], options: Options
) -> list[Row]:
    """Decode and where its time goes; with `stub` only what is left without what is in RAM.

    `experts` (None: not measured) is what they take by themselves, in seconds.
    """
    tokens, on_gpu = options.tokens, limits["vram_bandwidth"] is not None
    total = times.without if options.stub else times.whole
    share = 1 / total / limits["decode"] if limits["applies"] else None
    rows = [_row("decode", "decode", tokens, 1 / total, "tokens/s", share)]
    if experts is not None:
        speed = limits["routed_bytes_per_token"] / total / 1e9
        rows.append(_row(title, "decode", tokens, speed, "GB/s"))
    parts = {"a token": total}
    if times.silent:
        parts |= parts_of(times, experts, title, on_gpu)
    return rows + [_row(name, "decode", tokens, 1e3 * part, "ms") for name, part in parts.items()]


def parts_of(
    times: TokenSeconds, experts: float | None, title: str, on_gpu: bool
) -> dict[str, float]:
    """Where a token's time goes, in seconds; `experts` (None: not measured) is what they take by
    themselves. All parts less "side by side" are the token.
    """
    if on_gpu:
        parts = {
            f"GPU, no {title.removeprefix('routed ')}": times.silent,
            "hand-offs": max(times.without - times.silent, 0.0),
        }
    else:
        parts = {f"all but {title}": times.without}
    if experts is None:
        return parts
    parts[f"{title} alone"] = experts
    rest = times.whole - sum(parts.values())
    return parts | {"waiting, the rest": max(rest, 0.0), "side by side": max(-rest, 0.0)}


def _plan_facts(
    placed: Placement, again: Placement, subject: SyntheticRun, found: Hardware, stub: bool
) -> dict[str, Any]:
    """What the plan said, beside what was taken: of VRAM by the driver, of RAM by the system at the
    peak. Bytes; the margin is apart. `ram` is the whole model's, `ram_held` that of the weights
    which are really there. `again` is the plan for RAM as fast as it was meanwhile. A plan knows no
    `stub`, so there is no decode then.
    """
    margin = sum(item.nbytes for item in placed.gpu if item.name == "margin")
    before = usable_gpu(found)
    taken = before.free - subject.vram_free if before and subject.vram_free is not None else None
    beside = [item for item in placed.ram if item.name not in _WEIGHTS and item.name != "margin"]
    return {
        "vram": placed.gpu_bytes - margin,
        "vram_margin": margin,
        "vram_measured": taken,
        "ram": placed.ram_bytes,
        "ram_total": found.ram_total,
        "ram_held": sum(item.nbytes for item in beside) + subject.held_bytes,
        "ram_measured": ram_peak.peak(),
        "ram_parts": ram_peak.now(),
        "decode": None if stub else placed.prediction.decode_tps,
        "decode_meanwhile": None if stub else again.prediction.decode_tps,
        "decode_depth": DEPTH,
        "prefill": placed.prediction.prefill_tps,
    }


def refuse_impossible(rows: list[dict[str, Any]]) -> None:
    """LocalR1Error for a share that nothing can have. Prompts may on AMX, which is no part of the
    int8 peak.
    """
    unbound = "prefill" if amx.in_use() else None
    for row in rows:
        if row["share"] is not None and row["share"] > MOST and row["name"] != unbound:
            raise LocalR1Error(
                f"{row['name']} reached {row['share']:.2f} of the limit, "
                "so that was measured badly",
                "other programs may have used the machine meanwhile; run it again on a quiet one",
            )
