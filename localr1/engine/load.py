"""From open files to an engine: plan, bring the weights in, compile, build the model."""

from __future__ import annotations

from collections.abc import Callable

import cpu_experts
from localr1.engine.engine import Engine
from localr1.engine.runner import TransformerRunner
from localr1.errors import USAGE, BadFile, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.models import compiled, inventory
from localr1.models.architecture import Config
from localr1.models.shapes import check_shapes
from localr1.models.source import Source
from localr1.models.transformer import Transformer
from offload.errors import NoRoom, ResidencyError, Unknown
from offload.hardware import on_paper
from offload.memory import available_bytes
from offload.placement import Placement
from offload.planner import LEAST_CONTEXT, plan
from offload.residency import AUTO, MAPPED, holder

Report = Callable[[Progress], None]

DEFAULT_CONTEXT = 16_384


def load_engine(
    source: Source,
    config: Config,
    stop_ids: frozenset[int],
    *,
    context: int | None = None,
    ram: int | None = None,
    threads: int | None = None,
    residency: str = AUTO,
    report: Report = lambda progress: None,
) -> Engine:
    """Bring the weights into RAM, build the model on the CPU and an empty cache, as planned.

    `context` in tokens (default: the model's own, at most 16,384), less where memory is short:
    the engine's `placement` tells. `ram` in bytes that we may use (default: what is free);
    `residency` "auto", "mapped" or "owned" (docs/placement.md). Raises DoesNotFit before anything
    big is allocated.
    """
    formats = check_shapes(config, source)
    found = placement(source, config, asked_context(config.max_context, context), ram, residency)
    _bring_in(source, residency, found.fits, report)
    cpu_experts.set_threads(threads)
    _compile(formats, report)
    model = Transformer(config, source, found.context)
    return Engine(TransformerRunner(model, found.context), stop_ids, found)


def _compile(formats: set[str], report: Report) -> None:
    """Compile what these formats need, or load it from the disk cache."""
    stage = "Compiling CPU kernels, first run only"
    try:
        for done, total in cpu_experts.warmup(sorted(formats)):
            report(Progress(stage, done, total + len(compiled.STEPS), "kernels"))
    except cpu_experts.UnsupportedISA as error:
        raise Unsupported(str(error), "unset LOCALR1_ISA to let the processor choose") from error
    for done, step in enumerate(compiled.STEPS, start=total + 1):
        step()
        report(Progress(stage, done, total + len(compiled.STEPS), "kernels"))


def asked_context(most: int, asked: int | None) -> int:
    """The context to plan for, of a model that holds `most` tokens. Raises LocalR1Error."""
    if asked is None:
        return min(most, DEFAULT_CONTEXT)
    if not 1 < asked <= most:
        hint = f"--context goes from 2 to {most:,}"
        raise LocalR1Error(f"this model cannot hold a context of {asked:,} tokens", hint, USAGE)
    return asked


def placement(source: Source, config: Config, context: int, ram: int | None, how: str) -> Placement:
    """The plan for an open model on this machine's CPU, with what is free now.

    Weights that do not fit are refused, unless someone asked for them to be mapped: then the disk
    is read for every token. Cache and workspace must always fit. Raises DoesNotFit.
    """
    free = available_bytes()
    room = free if ram is None else min(ram, free)
    stock = inventory.from_source(source, config)
    found = plan(stock.weights, on_paper(vram=None, ram=room), context, stock.demands)
    if found.fits or (found.works and how == MAPPED):
        return found
    raise does_not_fit(source.path.name, found)


def does_not_fit(name: str, found: Placement) -> DoesNotFit:
    """What is missing, and every way out that this plan leaves."""
    gib = 1 << 30
    need = found.ram_room + found.shortfall
    problem = f"{name} needs {need / gib:.1f} GiB of RAM and {found.ram_room / gib:.1f} GiB is free"
    hint = "take a smaller file"
    if found.asked_context > LEAST_CONTEXT:
        hint += f", or --context {LEAST_CONTEXT}"
    if found.works:
        hint += "; --residency mapped reads it from the disk for every token, which is slow"
    return DoesNotFit(problem, hint)


def _bring_in(source: Source, how: str, fits: bool, report: Report) -> None:
    """Bring the weights into RAM, or leave them on the disk where they are too big for it."""
    try:
        weights = holder(how, source.files)
        if not fits:
            return
        for done, total in weights.load():
            report(Progress("Loading", done, total, "bytes"))
    except NoRoom as error:
        raise DoesNotFit(str(error), error.hint) from error
    except Unknown as error:
        raise LocalR1Error(str(error), error.hint, USAGE) from error
    except ResidencyError as error:
        raise BadFile(str(error), error.hint) from error
    source.move_to(weights.files)
