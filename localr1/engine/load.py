"""From open files to an engine: check that they fit, compile what they need, build the model."""

from __future__ import annotations

from collections.abc import Callable

import cpu_experts
from localr1.engine.engine import Engine
from localr1.errors import USAGE, BadFile, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.models import compiled
from localr1.models.config import ModelConfig
from localr1.models.deepseek import Transformer
from localr1.models.kv_cache import KVCache
from localr1.models.shapes import check_shapes
from localr1.models.source import Source
from offload.errors import NoRoom, ResidencyError, Unknown
from offload.memory import available_bytes
from offload.residency import AUTO, MAPPED, holder

Report = Callable[[Progress], None]

DEFAULT_CONTEXT = 16_384
_WORKSPACE_BYTES = (
    512 << 20
)  # activations, temporaries and the compiled code; measured on R1's shapes


def load_engine(
    source: Source,
    config: ModelConfig,
    stop_ids: frozenset[int],
    *,
    context: int | None = None,
    ram: int | None = None,
    threads: int | None = None,
    residency: str = AUTO,
    report: Report = lambda progress: None,
) -> Engine:
    """Bring the weights into RAM, build the model on the CPU and an empty cache.

    `context` in tokens (default: the model's own, at most 16,384); `ram` in bytes that we may use
    (default: what is free); `residency` "auto", "mapped" or "owned" (docs/placement.md). Raises
    DoesNotFit before anything big is allocated.
    """
    context = _context(config, context)
    formats = check_shapes(config, source)
    _bring_in(source, residency, _fits(source, config, context, ram, residency), report)
    cpu_experts.set_threads(threads)
    _compile(formats, report)
    return Engine(Transformer(config, source, context), stop_ids, context)


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


def _context(config: ModelConfig, asked: int | None) -> int:
    if asked is None:
        return min(config.max_context, DEFAULT_CONTEXT)
    if not 1 < asked <= config.max_context:
        hint = f"--context goes from 2 to {config.max_context:,}"
        raise LocalR1Error(f"this model cannot hold a context of {asked:,} tokens", hint, USAGE)
    return asked


def _fits(source: Source, config: ModelConfig, context: int, ram: int | None, how: str) -> bool:
    """Whether weights, cache and workspace fit into `ram`, or into the free memory.

    Weights that do not fit are refused, unless someone asked for them to be mapped: then the disk
    is read for every token. Cache and workspace must always fit.
    """
    width = config.kv_lora_rank + config.qk_rope_head_dim
    cache = KVCache.nbytes(config.n_layers, context, width)
    need = source.nbytes + cache + _WORKSPACE_BYTES
    room = ram if ram is not None else available_bytes()
    if need <= room:
        return True
    gib = 1 << 30
    sizes = f"{need / gib:.1f} GiB of RAM and {room / gib:.1f} GiB is free"
    hint = f"take a smaller file or a smaller --context: the cache is {cache / gib:.1f} GiB of it"
    if cache + _WORKSPACE_BYTES > room:
        raise DoesNotFit(f"{source.path.name} needs {sizes}", hint)
    if how != MAPPED:
        slow = "--residency mapped reads it from the disk for every token, which is slow"
        raise DoesNotFit(f"{source.path.name} needs {sizes}", f"{hint}; {slow}")
    return False


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
