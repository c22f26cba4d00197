"""`localr1 bench --synthetic MODEL`: a model's full shapes with random weights, nothing downloaded.

The real engine runs: on a GPU for which there are kernels, attention, shared experts and head there
in one CUDA graph with the routed experts in RAM; else all on the CPU. Only the choice of experts is
replaced, by a random one for every layer and token. Shares are of the limit that the memories'
bandwidths set, measured in the same run. Not here: running it (synthetic_run.py), how the result is
told (synthetic_card.py), real files (bench.py), the kernels alone (bench_kernels.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

import cpu_experts
from cpu_experts.bandwidth import read_limit, vnni_operations_per_second, ways_by_threads
from cpu_experts.bench import CACHES, MOST
from cpu_experts.cpu import last_cache_bytes
from localr1 import registry, synthetic_card
from localr1.bench import Row, machine
from localr1.errors import USAGE, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.machine import hardware
from localr1.models import inventory
from localr1.models.architecture import config_from_hf
from localr1.models.config import ModelConfig
from localr1.models.inventory import Inventory
from localr1.models.quant_rules import DEFAULTS
from localr1.progress import ProgressLine
from localr1.synthetic_run import WARM, SyntheticRun
from offload.hardware import Gpu, Hardware, on_paper
from offload.placement import Kind, Placement, Tier
from offload.planner import plan, usable_gpu
from offload.predict import DEPTH

Report = Callable[[Progress], None]

_GIB = 1 << 30
_CARDS = {"RTX 4090": 1008e9, "RTX 3090": 936e9}  # bytes/second by the data sheet; 24 GiB each
_ROUNDS = 3
_ON_CARD = (Kind.ROUTER, Kind.ATTENTION, Kind.SHARED, Kind.HEAD, Kind.DENSE)


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. Sizes in bytes; None: all that is there."""

    quant: str | None = None  # None: what MODEL names, or Q4_K_M
    vram: int | None = None
    ram: int | None = None  # for routed experts
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

    Raises ModelNotFound, Unsupported (no mixture of experts, a quant without a rule), DoesNotFit.
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
        found = hardware(report=progress.show, threads=options.threads)
        return measure(f"{entry.name}:{options.quant}", config, options, found, progress.show)


def _config(entry: registry.ModelEntry, options: Options) -> ModelConfig:
    if not entry.config or not isinstance(config_from_hf(entry.config), ModelConfig):
        hint = "deepseek-r1 is one; `localr1 list` shows all"
        raise Unsupported(f"{entry.name} is not a known model of routed experts", hint)
    layers = options.layers or int(entry.config["num_hidden_layers"])
    config = ModelConfig.from_hf({**entry.config, "num_hidden_layers": layers})
    if layers <= config.n_dense_layers:
        hint = f"--layers starts at {config.n_dense_layers + 1} for {entry.name}"
        raise LocalR1Error(f"{layers} layers hold no routed experts", hint, USAGE)
    least = max(options.tokens + WARM + 2, options.prefill)
    if not least <= options.context <= config.max_context:
        hint = f"--context goes from {least} to {config.max_context:,}"
        raise LocalR1Error(f"the context is {options.context:,} tokens", hint, USAGE)
    return config


def measure(
    name: str,
    config: ModelConfig,
    options: Options,
    found: Hardware,
    report: Report = lambda progress: None,
) -> dict[str, Any]:
    """Build and measure a model of `config` on the machine `found`; see `run`."""
    cpu_experts.set_threads(options.threads)
    found = replace(found, gpus=found.gpus[:1])  # the one that torch calls "cuda"
    quant = options.quant or "Q4_K_M"
    stock, gpu = inventory.from_rule(config, quant), _gpu(found, options.vram)
    placed = planned(stock, gpu, found, options.context)
    subject = SyntheticRun(config, quant, options.context, options.ram, gpu is not None, report)
    rows = []
    if options.prefill:
        rows.append(_prefill(subject, stock, options.prefill, gpu is not None))
    limits = _limits(subject, stock, gpu, options)
    rows += _decode(subject, limits, options)
    loads = subject.seconds.items()
    projections = [] if options.stub else _projections(stock, found, options, limits)
    return {
        "machine": {**machine(), "isa": cpu_experts.tier(), "gpu": asdict(gpu) if gpu else None},
        "model": name,
        "synthetic": {
            "layers": config.n_layers,
            "context": options.context,
            "depth": options.context - options.tokens - WARM - 1,
            "stub": options.stub,
            "routed_bytes": subject.weights.routed_bytes,
            "distinct_bytes": subject.weights.distinct_bytes,
        },
        "limits": limits,
        "plan": _plan_facts(placed, subject, found),
        "projections": projections,
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
    gpu = usable_gpu(found) if torch.cuda.is_available() and vram != 0 else None
    if gpu is None or vram is None:
        return gpu
    return replace(gpu, total=min(gpu.total, vram), free=min(gpu.free, vram - vram // 64))


def planned(stock: Inventory, gpu: Gpu | None, found: Hardware, context: int) -> Placement:
    """The plan for what is run: all but the routed experts on the GPU, in RAM that holds them all.

    Raises DoesNotFit where the GPU has no room for that.
    """
    ram = max(found.ram_available, stock.nbytes + 64 * _GIB)
    roomy = replace(found, gpus=(gpu,) if gpu else (), ram_total=ram, ram_available=ram)
    placed = plan(stock.weights, roomy, context, stock.demands)
    if gpu is None:
        return placed
    left = [w for w in stock.weights if w.kind in _ON_CARD and placed.tier(w.name) != Tier.GPU]
    if left or placed.context < context:
        all_fits = plan(stock.weights, _with_free(roomy, 1 << 50), context, stock.demands)
        need = _without_routed(all_fits) / _GIB
        raise DoesNotFit(
            f"this needs {need:.1f} GiB of VRAM and {gpu.free / _GIB:.1f} GiB is free",
            "a smaller --context or --quant needs less; --vram 0 runs on the CPU",
        )
    return plan(stock.weights, _with_free(roomy, _without_routed(placed)), context, stock.demands)


def _with_free(found: Hardware, free: int) -> Hardware:
    return replace(found, gpus=tuple(replace(gpu, free=free) for gpu in found.gpus))


def _without_routed(placed: Placement) -> int:
    return sum(item.nbytes for item in placed.gpu if item.name != Kind.ROUTED.value)


def _prefill(subject: SyntheticRun, stock: Inventory, tokens: int, on_gpu: bool) -> Row:
    """Of a prompt; beside a GPU with the share of what the CPU's int8 arithmetic allows."""
    speed, share = tokens / subject.prefill_seconds(tokens), None
    if on_gpu and cpu_experts.tier() == "avx512_vnni":
        routed = [weight for weight in stock.weights if weight.kind == Kind.ROUTED]
        operations = sum(2 * weight.values * weight.read_fraction for weight in routed)
        share = speed * operations / max(vnni_operations_per_second() for _ in range(_ROUNDS))
    return _row("prefill", "prefill", tokens, speed, "tokens/s", share)


def _limits(
    subject: SyntheticRun, stock: Inventory, gpu: Gpu | None, options: Options
) -> dict[str, Any]:
    """What the memories' bandwidths allow, measured now; bytes that one token reads."""
    bandwidth, working_set = _read_bandwidth(subject.weights.routed)
    routed, alone, shared = _traffic(stock, options)
    if options.stub:
        routed = 0.0
    ram, vram = (routed, alone) if gpu else (routed + alone + shared, 0.0)
    seconds = ram / bandwidth + (vram / gpu.bandwidth if gpu else 0.0)
    # What fits the cache is not read from RAM, and RAM is then no limit.
    applies = subject.weights.distinct_bytes > last_cache_bytes()
    return {
        "read_bandwidth": bandwidth / 1e9,
        "read_bandwidth_unit": "GB/s",
        "read_bandwidth_method": f"prefetched reads of {working_set / 1e9:.1f} GB",
        "working_set_per_last_cache": working_set / last_cache_bytes(),
        "vram_bandwidth": gpu.bandwidth / 1e9 if gpu else None,
        "routed_bytes_per_token": routed,
        "ram_bytes_per_token": ram,
        "vram_bytes_per_token": vram,
        "decode": 1 / seconds,
        "decode_unit": "tokens/s",
        "applies": applies,
    }


def _traffic(stock: Inventory, options: Options) -> tuple[float, float, float]:
    """Bytes that a token reads: of routed experts; of what nothing else can be done beside, the
    cache included; of shared experts, which a GPU reads while the CPU reads the routed ones.
    """
    read = dict.fromkeys(Kind, 0.0)
    for weight in stock.weights:
        read[weight.kind] += weight.nbytes * weight.read_fraction
    routed, shared = read.pop(Kind.ROUTED), read.pop(Kind.SHARED)
    cache = stock.demands.cache_gpu * stock.demands.n_layers * (options.context - options.tokens)
    return routed, sum(read.values()) + cache, shared


def _read_bandwidth(routed: np.ndarray) -> tuple[float, int]:
    """Bytes/second at which the experts' own memory is read, and how much of it was."""
    part = routed[: max(CACHES * last_cache_bytes(), 1 << 28)]
    ways = ways_by_threads(part[: 1 << 28])
    return max(max(read_limit(part, ways).values()) for _ in range(_ROUNDS)), part.nbytes


def _decode(subject: SyntheticRun, limits: dict[str, Any], options: Options) -> list[Row]:
    """Decode and where its time goes; with `stub` only what is left without routed experts."""
    tokens, on_gpu = options.tokens, limits["vram_bandwidth"] is not None
    experts = 0.0 if options.stub else subject.experts_seconds(tokens)
    seconds, alone = subject.decode_seconds(tokens, options.stub)
    total = alone if options.stub else seconds
    share = 1 / total / limits["decode"] if limits["applies"] else None
    rows = [_row("decode", "decode", tokens, 1 / total, "tokens/s", share)]
    others = "GPU, no experts" if on_gpu else "all but routed experts"
    parts = {"a token": total, others: alone}
    if not options.stub:
        speed = limits["routed_bytes_per_token"] / total / 1e9
        rows.append(_row("routed experts", "decode", tokens, speed, "GB/s"))
        parts |= {"routed experts alone": experts, "waiting, the rest": total - alone - experts}
    return rows + [_row(name, "decode", tokens, 1e3 * part, "ms") for name, part in parts.items()]


def _plan_facts(placed: Placement, subject: SyntheticRun, found: Hardware) -> dict[str, Any]:
    """What the plan said, beside what the driver says was taken. Bytes; the margin is apart."""
    margin = sum(item.nbytes for item in placed.gpu if item.name == "margin")
    before = usable_gpu(found)
    taken = before.free - subject.vram_free if before and subject.vram_free is not None else None
    return {
        "vram": placed.gpu_bytes - margin,
        "vram_margin": margin,
        "vram_measured": taken,
        "decode": placed.prediction.decode_tps,
        "decode_depth": DEPTH,
        "prefill": placed.prediction.prefill_tps,
    }


def _projections(
    stock: Inventory, found: Hardware, options: Options, limits: dict[str, Any]
) -> list[dict[str, Any]]:
    """Limits of decode on cards that are not here, with this machine's RAM."""
    routed, alone, _ = _traffic(stock, options)
    rows = []
    for name, bandwidth in _CARDS.items():
        card = on_paper(vram=24 * _GIB, ram=1 << 50, vram_bandwidth=bandwidth).gpus[0]
        try:
            planned(stock, card, found, options.context)
            fits = True
        except DoesNotFit:
            fits = False
        seconds = routed / limits["read_bandwidth"] / 1e9 + alone / bandwidth
        rows.append({"card": name, "decode_limit": 1 / seconds, "fits": fits})
    return rows


def refuse_impossible(rows: list[dict[str, Any]]) -> None:
    """LocalR1Error for a share that nothing can have."""
    for row in rows:
        if row["share"] is not None and row["share"] > MOST:
            raise LocalR1Error(
                f"{row['name']} reached {row['share']:.2f} of the limit, "
                "so that was measured badly",
                "other programs may have used the machine meanwhile; run it again on a quiet one",
            )
