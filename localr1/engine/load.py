"""From open files to an engine: plan, bring the weights in, compile, build the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import cpu_experts
from cpu_experts import QuantTensor
from cpu_experts.token_program import GROUPED, LATENT
from cpu_experts.warmup import MAILBOX
from localr1.engine.device import AUTO as AUTO_DEVICE
from localr1.engine.device import CUDA, room
from localr1.engine.engine import Engine
from localr1.engine.runner import Runner, TransformerRunner
from localr1.errors import USAGE, BadFile, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.interrupts import HeldInterrupts
from localr1.models import cache_layout, inventory
from localr1.models.architecture import Config
from localr1.models.config import ModelConfig
from localr1.models.inventory import Inventory
from localr1.models.kv_cache import KVCache
from localr1.models.linear import Weights
from localr1.models.shapes import check_shapes
from localr1.models.source import Source
from localr1.models.transformer import Transformer
from offload.errors import NoRoom, ResidencyError, Unknown
from offload.hardware import Hardware
from offload.placement import Kind, Placement, Tier, layers_named
from offload.planner import LEAST_CONTEXT, plan
from offload.residency import AUTO, MAPPED, OWNED, holder, release
from offload.shortage import in_8_bits

Report = Callable[[Progress], None]

DEFAULT_CONTEXT = 16_384


def load_engine(
    source: Source,
    config: Config,
    stop_ids: frozenset[int],
    *,
    device: str = AUTO_DEVICE,
    cache: str = cache_layout.IN_16_BITS,
    vram: int | None = None,
    ram: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    residency: str = AUTO,
    report: Report = lambda progress: None,
) -> Engine:
    """Bring the weights to where the plan has them, build the model there and an empty cache.

    `device` "cpu", "cuda" or "auto"; `cache` "16bit" or "8bit", of a GPU's; `vram` and `ram` in
    bytes that we may use (default: what is free); `context` in tokens (default: the model's own, at
    most 16,384), less where memory is short: the engine's `placement` tells. `residency` "auto",
    "mapped" or "owned" (docs/placement.md). Raises DoesNotFit before anything big is
    allocated, Unsupported.
    """
    cache_layout.checked(cache)
    formats = check_shapes(config, source)
    machine = room(device, ram, vram, threads, report)
    asked = asked_context(config.max_context, context)
    stock = inventory.from_source(source, config).with_cache(cache)
    gpu = device == CUDA  # asked for, so used even where it makes nothing quicker
    found = placement(source.path.name, stock, asked, machine.hardware, residency, gpu)
    if gpu and not found.gpu:
        raise _not_on_the_gpu(source.path.name, found)
    roomier = in_8_bits(stock.weights, machine.hardware, stock.demands, found)
    weights = _bring_in(source, residency, found, report)
    cpu_experts.set_threads(threads)
    callers = _callers(config, stock, found)
    runner: Runner
    if found.gpu and machine.gpu is not None:
        from localr1.engine.gpu_load import gpu_runner

        formats = {weights[name].format.name for name in _names(source, found, Tier.RAM)}
        _compile(formats, callers, report)
        runner = gpu_runner(config, weights, found, machine.gpu, cache, residency == OWNED, report)
        _release(source, found, runner.reads_embedding)
    else:
        _compile(formats, callers, report)
        runner = TransformerRunner(Transformer(config, weights, found.context), found.context)
    told = notes(machine.problem, runner, found, cache, roomier)
    return Engine(runner, stop_ids, found, told)


def notes(
    problem: str, runner: Runner, found: Placement, cache: str, roomier: Placement | None = None
) -> list[str]:
    """What a user should know of how the model was loaded. `roomier`: the plan with an 8-bit cache,
    where that has room for more.
    """
    told = [problem, runner.problem]
    if found.cpu_layers:
        left = layers_named(0, found.cpu_layers)
        told.append(f"the CPU runs {left}, for which the GPU has no room")
        if roomier and roomier.context == found.context:
            left = layers_named(0, roomier.cpu_layers)
            told[-1] += f"; --cache 8bit leaves {left} to the CPU"
    if found.context < found.asked_context:
        ways = "localr1 plan says why"
        if roomier and roomier.context > found.context:
            ways += f"; --cache 8bit makes room for {roomier.context:,}"
        told.append(
            f"memory is short: the context is {found.context:,} tokens, not"
            f" {found.asked_context:,} ({ways})"
        )
    elif roomier and not found.gpu:
        told.append("the GPU has no room for this context; with --cache 8bit it has")
    if cache != cache_layout.IN_16_BITS and not isinstance(runner.cache, KVCache):
        told.append("llama.cpp keeps its cache in 16 bits: --cache 8bit is for our engine")
    elif cache != cache_layout.IN_16_BITS and not found.gpu:
        told.append("the cache is kept in 32 bits: --cache 8bit is for a GPU")
    return [note for note in told if note]


def _names(source: Source, found: Placement, tier: Tier) -> list[str]:
    return [name for name in source.names() if found.tiers.get(name) is tier]


def _callers(config: Config, stock: Inventory, found: Placement) -> list[str]:
    """Who will call the CPU's kernels: programs of its layers, the mailbox of a GPU, or both."""
    callers = []
    if found.cpu_layers or not found.gpu:
        callers.append(LATENT if isinstance(config, ModelConfig) else GROUPED)
    ffns = [weight.name for weight in stock.weights if weight.kind in (Kind.DENSE, Kind.ROUTED)]
    if found.gpu and any(found.tier(name) is not Tier.GPU for name in ffns):
        callers.append(MAILBOX)
    return callers


def _compile(formats: set[str], callers: list[str], report: Report) -> None:
    """Compile what these formats and callers need, or load it from the disk cache."""
    stage = "Compiling CPU kernels, first run only"
    try:
        with HeldInterrupts() as held:  # Ctrl-C inside LLVM's callbacks would be lost, aloud
            for done, total in cpu_experts.warmup(sorted(formats), callers):
                report(Progress(stage, done, total, "kernels"))
                held.check()
    except cpu_experts.UnsupportedISA as error:
        raise Unsupported(str(error), "unset LOCALR1_ISA to let the processor choose") from error


def asked_context(most: int, asked: int | None) -> int:
    """The context to plan for, of a model that holds `most` tokens. Raises LocalR1Error."""
    if asked is None:
        return min(most, DEFAULT_CONTEXT)
    if not 1 < asked <= most:
        hint = f"--context goes from 2 to {most:,}"
        raise LocalR1Error(f"this model cannot hold a context of {asked:,} tokens", hint, USAGE)
    return asked


def placement(
    name: str,
    stock: Inventory,
    context: int,
    machine: Hardware,
    how: str,
    prefer_gpu: bool = False,
) -> Placement:
    """The plan for the model called `name` on what is free of this machine.

    Weights that do not fit are refused, unless someone asked for them to be mapped: then the disk
    is read for every token. Cache and workspace must always fit. Raises DoesNotFit.
    """
    found = plan(stock.weights, machine, context, stock.demands, prefer_gpu, how == OWNED)
    if found.fits or (found.works and how == MAPPED):
        return found
    raise does_not_fit(name, found)


def _not_on_the_gpu(name: str, found: Placement) -> DoesNotFit:
    free = found.gpu_room / (1 << 30)
    return DoesNotFit(
        f"{name} cannot use the GPU with {free:.1f} GiB of free VRAM",
        "localr1 plan shows what it needs there; a smaller --context or --cache 8bit needs less",
    )


def does_not_fit(name: str, found: Placement) -> DoesNotFit:
    """What is missing, and every way out that this plan leaves."""
    gib = 1 << 30
    need = found.ram_room + found.shortfall
    digits = 1 if found.shortfall >= gib else 2
    sizes = f"{need / gib:.{digits}f} GiB of RAM and {found.ram_room / gib:.{digits}f} GiB is free"
    problem = f"{name} needs {sizes}"
    hint = "take a smaller file"
    if found.asked_context > LEAST_CONTEXT:
        hint += f", or --context {LEAST_CONTEXT}"
    if found.works:
        hint += "; --residency mapped reads it from the disk for every token, which is slow"
    return DoesNotFit(problem, hint)


class _Placed:
    """Weights of which some are held elsewhere than the file is mapped."""

    def __init__(self, source: Source, held: Source, names: list[str]) -> None:
        self._source, self._held, self._names = source, held, frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self._source

    def __getitem__(self, name: str) -> QuantTensor:
        return (self._held if name in self._names else self._source)[name]


def _bring_in(source: Source, how: str, found: Placement, report: Report) -> Weights:
    """Bring weights into RAM, those that a GPU gets left out, or leave all on the disk where they
    are too big for it.
    """
    in_ram = _names(source, found, Tier.RAM)
    split = bool(found.gpu)
    spans = source.spans(in_ram) if split else None
    try:
        weights = holder(how, source.files, spans)
        if not found.fits:
            return source
        for done, total in weights.load():
            report(Progress("Loading", done, total, "bytes"))
    except NoRoom as error:
        raise DoesNotFit(str(error), error.hint) from error
    except Unknown as error:
        raise LocalR1Error(str(error), error.hint, USAGE) from error
    except ResidencyError as error:
        raise BadFile(str(error), error.hint) from error
    held = copy.copy(source) if split else source
    held.move_to(weights.files)
    return _Placed(source, held, in_ram) if split else source


def _release(source: Source, found: Placement, embedding: bool) -> None:
    """Let go of the pages of weights that the GPU holds now, or reads in its own form."""
    names = _names(source, found, Tier.GPU)
    names += ["token_embd.weight"] * (embedding and "token_embd.weight" not in names)
    release(source.files, source.spans(names))
