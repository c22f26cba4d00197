"""The other engine: llama.cpp computes the logits, everything else is as with ours.

A `LlamaRunner` under the same loop, so sampling, template, thinking and sessions do not know which
engine it is. For machines and architectures that ours does not cover. Only llama.cpp's plain
functions are used (llama_library.py); what it keeps of the conversation is in llama_cache.py.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import cpu_experts
from localr1.engine import llama_library
from localr1.engine.engine import Engine
from localr1.engine.llama_cache import N_SEQUENCES, LlamaCache
from localr1.engine.llama_job import Crashed, Job
from localr1.engine.llama_plan import CPU_BATCH, GPU_BATCH, LlamaModel
from localr1.engine.load import Report, asked_context, does_not_fit, notes
from localr1.engine.runner import Runner, not_finite
from localr1.engine.sampler import Sampler
from localr1.errors import BadFile, DoesNotFit, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.models import cache_layout
from localr1.models.gguf import GGUFFile
from offload.memory import available_bytes
from offload.placement import Placement
from offload.residency import AUTO, MAPPED

_LOOK_SECONDS = 0.05  # between two looks at what the other thread does: Ctrl-C comes through then


class LlamaRunner(Runner):
    """One model and one context of llama.cpp, both freed with this."""

    def __init__(self, lib: Any, model: Any, context: Any, max_length: int) -> None:
        self.chunk = int(lib.llama_n_batch(context))
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self._cache = LlamaCache(lib, context, max_length)
        self._lib, self._context = lib, context
        self._token = (ctypes.c_int32 * 1)()
        self._step = lib.llama_batch_get_one(self._token, 1)
        self._rows: dict[int, torch.Tensor] = {}  # llama.cpp's buffers that were met, by address
        self._stop = ctypes.create_string_buffer(2)
        # Asked between all operations of all layers, so it is no Python: a text of one character
        # has the length 1, which llama.cpp takes for "stop".
        self._asked = lib.ggml_abort_callback(_address(_libc().strlen))
        lib.llama_set_abort_callback(context, self._asked, ctypes.addressof(self._stop))
        weakref.finalize(self, _free, lib, model, context)

    @property
    def cache(self) -> LlamaCache:
        return self._cache

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """As `Runner.read`; a closed iterator ends the computing within one operation."""
        if len(ids) == 1:
            yield self.step(ids[0])
            return
        job = Job(self._decode, ids)
        try:
            while not job.done(_LOOK_SECONDS):
                yield 0.0
        except BaseException:
            self._stop[0] = b"\1"
            job.done()
            self._stop[0] = b"\0"
            raise
        job.result()
        yield 1.0
        yield self._last()

    def step(self, token: int) -> torch.Tensor:
        """As `Runner.step`."""
        self._token[0] = token
        self._run(self._step, 1)
        return self._last()

    def logits(self, ids: list[int]) -> torch.Tensor:
        """As `Runner.logits`."""
        self._decode(ids, everywhere=True)
        return self._tensor(self._lib.llama_get_logits(self._context), len(ids))

    def draw(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """As `Runner.draw`."""
        row = logits.numpy()[0]
        if not math.isfinite(row.sum()):  # quicker than asking each of them
            raise not_finite()
        return sampler(row)

    def _decode(self, ids: list[int], everywhere: bool = False) -> None:
        """Compute behind the committed tokens; logits behind the last of `ids`, or all."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)  # a batch only points to it
        batch = self._lib.llama_batch_get_one(tokens, len(ids))
        if everywhere:
            batch.logits = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        self._run(batch, len(ids))

    def _run(self, batch: Any, n_tokens: int) -> None:
        self._cache.clean()
        self._cache.held = None
        if code := self._lib.llama_decode(self._context, batch):
            why = llama_library.complaints() or "it does not say why"
            raise LocalR1Error(f"llama.cpp could not compute (code {code}): {why}")
        self._cache.held = self._cache.length + n_tokens

    def _last(self) -> torch.Tensor:
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(pointer.contents)
        if address not in self._rows:
            self._rows = {address: self._tensor(pointer, 1)}
        return self._rows[address]

    def _tensor(self, pointer: Any, n_tokens: int) -> torch.Tensor:
        """llama.cpp's own buffer, which its next call writes over."""
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (n_tokens, self.vocab_size)))


def load_llama_cpp(
    source: GGUFFile,
    stop_ids: frozenset[int],
    *,
    device: str = AUTO,
    cache: str = cache_layout.IN_16_BITS,
    vram: int | None = None,
    ram: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    residency: str = AUTO,
    report: Report = lambda progress: None,
) -> Engine:
    """An engine over llama.cpp for an open file, planned like ours; arguments as `load_engine`;
    its cache is in 16 bits, whatever `cache` says.

    `vram` in bytes that we may use (default: what is free on the GPUs llama.cpp can use). Raises
    Unsupported (it is not installed, or cannot go back to an earlier token), DoesNotFit, BadFile.
    """
    lib = llama_library.require()
    cache_layout.checked(cache)
    if residency not in (AUTO, MAPPED):
        hint = "leave --residency out, or take --engine hybrid"
        raise Unsupported("llama.cpp maps its files, and keeps them no other way", hint)
    sizes = LlamaModel(source)
    room = available_bytes() if ram is None else min(ram, available_bytes())
    asked = asked_context(sizes.max_context, context)
    found, layers = sizes.placement(asked, room, _vram(device, vram))
    if not found.fits and not (found.works and residency == MAPPED):
        raise does_not_fit(source.path.name, found)
    cpu_experts.set_threads(threads)
    try:
        model = _load_model(lib, source, layers, found.fits, report)
        made = _new_context(lib, model, found, layers)
    except Crashed as error:
        raise _not_loaded(source.path.name, str(error)) from error
    runner = LlamaRunner(lib, model, made, found.context)
    return Engine(runner, stop_ids, found, notes("", runner, found, cache))


def _vram(device: str, limit: int | None) -> int:
    """Bytes of VRAM that may be used. Raises Unsupported: a GPU is wanted and cannot be used."""
    if device == "cpu":
        return 0
    free = llama_library.free_vram()
    if device == "cuda" and not free:
        problem = "the llama.cpp that is installed cannot use a GPU here"
        raise Unsupported(problem, "install llama-cpp-python with support for it, or --device cpu")
    return free if limit is None else min(limit, free)


def _load_model(lib: Any, source: GGUFFile, layers: int, fits: bool, report: Report) -> Any:
    """llama.cpp's handle of the model, loaded in another thread: this one waits and tells."""
    share, wanted = 0.0, True

    def on_progress(value: float, data: object) -> bool:
        nonlocal share
        share = value
        return wanted

    params = lib.llama_model_default_params()
    params.n_gpu_layers = layers
    params.use_extra_bufts = fits and llama_library.repacks_safely()  # a second copy of weights
    params.progress_callback = lib.llama_progress_callback(on_progress)
    llama_library.complaints()
    job = Job(lib.llama_model_load_from_file, os.fsencode(source.path), params)
    try:
        while not job.done(_LOOK_SECONDS):
            report(Progress("Loading", int(share * source.nbytes), source.nbytes, "bytes"))
    except BaseException:
        wanted = False
        if model := job.result():
            lib.llama_model_free(model)
        raise
    if not job.result():
        raise _not_loaded(source.path.name, llama_library.complaints())
    return job.result()


def _not_loaded(name: str, why: str) -> LocalR1Error:
    if "unknown model architecture" in why or "unknown pre-tokenizer" in why:
        return Unsupported(f"llama.cpp cannot load {name}: {why}", "a newer version of it may")
    return BadFile(f"llama.cpp cannot load {name}: {why}", "localr1 verify MODEL checks the file")


def _new_context(lib: Any, model: Any, found: Placement, layers: int) -> Any:
    """llama.cpp's handle of a context as planned; where there is none, the model is freed."""
    if any((lib.llama_model_is_recurrent(model), lib.llama_model_is_hybrid(model))):
        lib.llama_model_free(model)
        problem = "the model keeps a running state, so it could not go back to an earlier token"
        raise Unsupported(problem, "models with attention in all layers can be run")
    params = lib.llama_context_default_params()
    params.n_ctx = found.context
    params.n_batch = params.n_ubatch = GPU_BATCH if layers else CPU_BATCH
    params.offload_kqv = params.op_offload = layers > 0  # else a GPU would be used in passing
    if not layers:  # on a CPU it takes up to twice as long over a thousand tokens
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_seq_max = N_SEQUENCES
    params.kv_unified = True  # both sequences in one memory, so that they can share its cells
    params.swa_full = True  # else tokens outside a sliding window could not be returned to
    params.n_threads = params.n_threads_batch = cpu_experts.get_threads()
    context = Job(lib.llama_init_from_model, model, params).result()
    if not context:
        lib.llama_model_free(model)
        problem = f"llama.cpp has no room for {found.context:,} tokens"
        hint = f"a smaller --context may fit; it says: {llama_library.complaints()}"
        raise DoesNotFit(problem, hint)
    return context


def _free(lib: Any, model: Any, context: Any) -> None:
    lib.llama_free(context)
    lib.llama_model_free(model)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
