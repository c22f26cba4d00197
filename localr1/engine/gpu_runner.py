"""Under the loop, a model of ours on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import cpu_experts
from cpu_experts.mailbox import MailboxError
from localr1.engine import halves
from localr1.engine.gpu_draw import GpuDraw
from localr1.engine.graph import DecodeGraph
from localr1.engine.runner import SUPER_CHUNK, Runner
from localr1.engine.sampler import Sampler
from localr1.errors import DoesNotFit, LocalR1Error
from localr1.gpu.driver import GpuError
from localr1.models.gpu import GpuParts
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Transformer


@contextmanager
def told() -> Iterator[None]:
    """What the GPU fails at inside becomes an error with a sentence and a way out.

    Raises DoesNotFit where its memory is too small, LocalR1Error for all else that it, its driver
    or the compiler refuse. Other errors are bugs and pass.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory() from error
    except RuntimeError as error:
        if not isinstance(error, GpuError) and "CUDA" not in str(error):
            raise
        problem = str(error).partition("\n")[0]  # torch adds lines of advice for programmers
        hint = "start again; --device cpu runs without the GPU, localr1 doctor looks at it"
        raise LocalR1Error(f"the GPU failed: {problem}", hint) from error


def out_of_memory() -> DoesNotFit:
    """What to say when the current GPU's memory is too small."""
    free = torch.cuda.mem_get_info()[0] / (1 << 30)
    hint = "close what uses it, or take a smaller --context, --vram or --device cpu"
    return DoesNotFit(f"the GPU ran out of memory; {free:.1f} GiB is free", hint)


class GpuRunner(Runner):
    """`model` on `parts`. A token is one CUDA graph, behind one call for the CPU's layers if it has
    any; where the mailbox does not work, kernel after kernel, and `problem` says why. Its methods
    raise what `told` does.
    """

    chunk = SUPER_CHUNK

    def __init__(self, model: Transformer, parts: GpuParts, context: int) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self._cache = model.new_cache(context)
        self._draw = GpuDraw(self.vocab_size, parts.device)
        self._graph: DecodeGraph | None = None
        self.problem = ""
        try:
            self._graph = DecodeGraph(model, parts, self._cache)
        except (LocalR1Error, MailboxError) as problem:
            self.problem = f"{problem}; tokens take longer"

    @property
    def cache(self) -> KVCache:
        return self._cache

    def read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        """As `Runner.read`; yields after each layer."""
        with told():
            yield from self._read(ids)

    def _read(self, ids: list[int]) -> Iterator[float | torch.Tensor]:
        torch.set_num_threads(cpu_experts.get_threads())
        n_layers = len(self.model.blk)
        for layer, state in enumerate(halves.read(self.model, ids, self._cache)):
            hidden = state
            yield (layer + 1) / n_layers
        yield self.model.head(hidden, last=1)

    @told()
    def step(self, token: int) -> torch.Tensor:
        """As `Runner.step`."""
        if self._graph is not None:
            return self._graph.step(token)
        *_, hidden = self.model.layers([token], self._cache)
        return self.model.head(hidden)

    @told()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """As `Runner.logits`."""
        *_, hidden = self.model.layers(ids, self._cache)
        return self.model.head(hidden).cpu()

    @told()
    @torch.inference_mode()
    def draw(self, sampler: Sampler, logits: torch.Tensor) -> int:
        """As `Runner.draw`."""
        return self._draw(sampler, logits)

    def rest(self) -> None:
        """As `Runner.rest`: the CPU's threads sleep."""
        if self._graph is not None:
            self._graph.rest()
