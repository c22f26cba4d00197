"""One token on the GPU as one CUDA graph: Python starts it and waits, nothing in between.

The graph holds every kernel of every layer, the questions to the experts in RAM and the waits for
their answers (localr1.gpu.mailbox). What differs from token to token, the embedding and the
position, lies in memory that is written before it starts. Where the CPU runs the first layers, they
come before it as one call (cpu_graph.py), and their hidden state takes the embedding's place. Its
eager twin is `Transformer.layers`, which asks by copies: the oracle, and what is left where the
mailbox does not work.
"""

from __future__ import annotations

import weakref

import torch

from cpu_experts.mailbox import MailboxError
from localr1.engine.cpu_graph import CpuGraph
from localr1.errors import LocalR1Error
from localr1.models.gpu import GpuParts
from localr1.models.kv_cache import KVCache
from localr1.models.transformer import Hidden, Transformer


class DecodeGraph:
    """`step(token)` for a model whose parts are the GPU's, but for its first layers' perhaps, over
    one cache.

    Raises LocalR1Error where the mailbox fails its first token, which tests it.
    """

    def __init__(self, model: Transformer, parts: GpuParts, cache: KVCache) -> None:
        self.model, self.parts, self.cache = model, parts, cache
        c = model.config
        # What differs from token to token, which one copy brings: the embedding and the position.
        self._given = torch.empty(c.hidden_size + 1, pin_memory=True)
        self._rows, self._length = _embedding_and_position(self._given)
        self._taken = torch.empty_like(self._given, device=parts.device)
        self._x, parts.position = _embedding_and_position(self._taken)
        self._logits = torch.empty(1, c.vocab_size, device=parts.device)
        self._first_layers = CpuGraph(model, cache) if model.cpu_layers else None
        self._handoff = parts.stage.open_mailbox() if any(parts.stage.banks) else None
        if self._handoff is not None:  # ends with us, since only one can run
            self._stop = weakref.finalize(self, self._handoff.box.stop)
        self._problem: str | None = None
        self._graph = torch.cuda.CUDAGraph()
        # Awake while waiting, unless every core has experts to compute: waking up takes 0.1 ms.
        self._done = torch.cuda.Event(blocking=self._handoff is not None)
        try:
            self._capture()
        except BaseException:
            self.close()
            raise
        finally:
            parts.stage.handoff = None  # outside the graph, copies ask
        self.rest()

    def _capture(self) -> None:
        """Run once, so that every kernel is loaded, then record."""
        stream = torch.cuda.Stream()
        self.parts.stage.handoff = self._handoff
        with torch.inference_mode(), torch.cuda.stream(stream):
            self._prepare(0)
            self._body()
        stream.synchronize()
        if self._handoff is not None and (problem := self._handoff.failure()):
            raise LocalR1Error(f"the mailbox does not work: {problem}")
        with torch.inference_mode(), torch.cuda.graph(self._graph, stream=stream):
            self._body()

    def _prepare(self, token: int) -> None:
        """Write what differs from token to token, and have the mailbox awake.

        It sleeps while the CPU's layers run: its thread would spin on a core that they need.
        """
        if self._first_layers is None:
            self._rows.copy_(self.model.token_embd([token]))
        else:
            self.rest()
            self._rows.copy_(self._first_layers.step(token))
        self._length.fill_(self.cache.length)
        if self._handoff is not None:
            self._handoff.box.resume()

    def _body(self) -> None:
        self._taken.copy_(self._given, non_blocking=True)
        hidden = Hidden(self._x)
        for block in self.model.blk[self.model.cpu_layers :]:
            hidden = block(hidden, self.cache)
        self._logits.copy_(self.model.head(hidden))

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """Run one token behind the committed ones, without committing it: logits `[1, vocab]` on
        the GPU, which the next step overwrites.

        A token whose experts did not answer in time (the program was stopped, pages were cold) is
        run again once. Raises LocalR1Error where that fails too.
        """
        if not self._run(token) and not self._run(token):
            raise LocalR1Error(f"a token failed: {self._problem}", "ask again; --debug tells more")
        return self._logits

    def _run(self, token: int) -> bool:
        """Whether all went well; if not, `_problem` says what, and the mailbox is as new."""
        self._prepare(token)
        self._graph.replay()
        self._done.record()
        self._done.synchronize()
        self._problem = self._handoff.failure() if self._handoff is not None else None
        if self._handoff is None or self._problem is None:
            return True
        try:
            self._handoff.reset()
        except MailboxError as error:
            raise LocalR1Error(f"a token failed: {error}", "start again") from error
        return False

    def rest(self) -> None:
        """No token will come for a while: the CPU's threads may sleep."""
        if self._handoff is not None:
            self._handoff.box.rest()

    def close(self) -> None:
        """End the thread that answers the GPU."""
        if self._handoff is not None:
            self._stop()


def _embedding_and_position(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 `[1, hidden]` and int32 `[1]`, which lie one behind the other in `memory`."""
    return memory[:-1].unsqueeze(0), memory[-1:].view(torch.int32)
