"""Which engine runs a model: ours where it covers model and machine, else llama.cpp.

Ours is called "hybrid". Decided before anything is loaded, from the headers of the file; what is
damaged is refused here too, so that llama.cpp never sees it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cpu_experts import cpu
from localr1.engine import llama_library
from localr1.engine.engine import Engine
from localr1.engine.llama_cpp import load_llama_cpp
from localr1.engine.load import load_engine
from localr1.errors import USAGE, BadFile, LocalR1Error, Unsupported
from localr1.models.architecture import Config
from localr1.models.gguf import GGUFFile
from localr1.models.shapes import check_shapes
from localr1.models.source import Source, read_config
from offload import gpus
from offload.planner import CAPABILITY

AUTO, HYBRID, LLAMA_CPP = ENGINES = ("auto", "hybrid", "llama.cpp")


@dataclass(frozen=True, slots=True)
class Choice:
    """`engine`: HYBRID or LLAMA_CPP. `why` "auto" took the latter: for a `gap` of ours, or as it is
    quicker here. `config` None: the architecture is not ours.
    """

    engine: str
    config: Config | None
    why: str = ""
    gap: Unsupported | None = None


def choose(asked: str, source: Source, use_gpu: bool = True) -> Choice:
    """The engine for an open model, of those `asked` allows.

    Raises Unsupported where none can run it, saying what would; BadFile; LocalR1Error for an
    engine that there is not.
    """
    if asked not in ENGINES:
        raise LocalR1Error(f"there is no engine {asked!r}", ", ".join(ENGINES), USAGE)
    config, gap = _own(source)
    if asked == LLAMA_CPP:
        _require_llama_cpp(source)
        return Choice(LLAMA_CPP, config)
    why = str(gap or (_machine_gap(source, use_gpu) if asked == AUTO else ""))
    if asked == HYBRID or not why:
        if gap is not None:
            raise gap
        return Choice(HYBRID, config)
    missing = llama_library.missing() if isinstance(source, GGUFFile) else "it reads GGUF files"
    if not missing:
        return Choice(LLAMA_CPP, config, why, gap)
    if gap is None:
        return Choice(HYBRID, config)  # slower than llama.cpp would be, but it runs
    if isinstance(source, GGUFFile):
        gap.hint += f"; llama.cpp may run it: {llama_library.INSTALL}"
    raise gap


def load(chosen: Choice, source: Source, stop_ids: frozenset[int], **options: Any) -> Engine:
    """The engine that was chosen for an open model; `options` are those of `load_engine`."""
    if chosen.engine == HYBRID:
        assert chosen.config is not None
        return load_engine(source, chosen.config, stop_ids, **options)
    assert isinstance(source, GGUFFile)
    try:
        engine = load_llama_cpp(source, stop_ids, **options)
    except (Unsupported, BadFile) as error:
        if chosen.gap is None:
            raise
        chosen.gap.hint += f"; nor can the other engine: {error}"
        raise chosen.gap from error
    if chosen.why:
        engine.notes = (f"{chosen.why}, so llama.cpp runs this model", *engine.notes)
    return engine


def _own(source: Source) -> tuple[Config | None, Unsupported | None]:
    """The model's sizes where we know its architecture, and what our engine lacks for it."""
    try:
        config = read_config(source)
    except Unsupported as gap:
        return None, gap
    try:
        check_shapes(config, source)
    except Unsupported as gap:
        return config, gap
    return config, None


def _machine_gap(source: Source, use_gpu: bool) -> str:
    """Why llama.cpp would be quicker on this machine; "" where our kernels are made for it."""
    forced = os.environ.get("LOCALR1_ISA")  # somebody wants our kernels
    if not forced and not cpu.supports(cpu.TIERS[0]):
        why = "this CPU lacks AVX-512 VNNI, which our kernels are made for"
    elif use_gpu and _fits_other_gpu(source.nbytes):
        why = "our kernels do not run on this GPU"
    else:
        return ""
    ours = use_gpu and any(gpu.capability >= CAPABILITY for gpu in gpus.look())
    return "" if ours else why


def _fits_other_gpu(nbytes: int) -> bool:
    """Whether the GPUs that llama.cpp can use hold a whole model of this size."""
    library = llama_library
    return library.has_gpu_code() and not library.missing() and library.free_vram() > nbytes


def _require_llama_cpp(source: Source) -> None:
    if not isinstance(source, GGUFFile):
        problem = f"llama.cpp reads GGUF files, and {source.path.name} is a folder of safetensors"
        raise Unsupported(problem, "take --engine hybrid, or a GGUF file of the model")
    llama_library.require()
