"""The Python door: `localr1.load(...)` gives an `LLM`: a model's engine and its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from localr1 import registry
from localr1.chat.session import Session
from localr1.engine import choice
from localr1.engine.engine import Engine
from localr1.engine.load import Report
from localr1.engine.sampler import SamplingParams
from localr1.errors import USAGE, LocalR1Error, Unsupported
from localr1.events import Progress
from localr1.models.architecture import Config
from localr1.models.source import open_source, read_text
from localr1.models.tokenizer import Detokenizer
from localr1.sizes import parse_size


class LLM:
    """A loaded model: `logits`, `generate` and `chat`, and the parts they are made of."""

    def __init__(
        self,
        resolved: registry.Resolved,
        engine: str,
        **options: Any,
    ) -> None:
        """`engine` is one of choice.ENGINES, `options` are those of `load_engine`."""
        self.name, self.path, self.entry = resolved.name, resolved.path, resolved.entry
        source = open_source(resolved.path)
        self.chosen = choice.choose(engine, source, use_gpu=options["device"] != "cpu")
        self.tokenizer, self.template = read_text(source)
        self.engine: Engine = choice.load(self.chosen, source, self.tokenizer.stop_ids, **options)
        self.sampling = SamplingParams(**(self.entry.sampling if self.entry else {}))

    @property
    def config(self) -> Config:
        """The model's sizes. Raises Unsupported for a model that only llama.cpp knows."""
        if self.chosen.config is None:
            problem = f"{self.name} is of an architecture that only llama.cpp knows"
            raise Unsupported(problem, "chat and run can use it")
        return self.chosen.config

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Teacher-forced logits: token ids -> float32 `[len(ids), vocab]`; row i stands behind
        ids[i].
        """
        return self.engine.logits(ids)

    def generate(self, ids: Sequence[int], params: SamplingParams | None = None) -> Iterator[int]:
        """Write after `ids`: token ids one by one, until the model stops or a limit is reached.

        A stop string ends the text at the token that completes it. Raises ContextFull.
        """
        params = params or self.sampling
        text, detokenizer = "", Detokenizer(self.tokenizer)
        longest = max(map(len, params.stop), default=0)
        for item in self.engine.stream(ids, params):
            if isinstance(item, Progress):
                continue
            yield item
            if longest:
                text = text[-longest:] + detokenizer.push(item)
                if any(stop in text for stop in params.stop):
                    return

    def chat(self, system: str | None = None, params: SamplingParams | None = None) -> Session:
        """A conversation: `for event in llm.chat().reply("why is the sky blue?"): ...`"""
        return Session(self, system=system, params=params or replace(self.sampling))


def load(
    model: str = "tiny-r1",
    *,
    device: str = "auto",
    cache: str = "16bit",
    vram: int | str | None = None,
    ram: int | str | None = None,
    context: int | None = None,
    threads: int | None = None,
    engine: str = "auto",
    residency: str = "auto",
    progress: Report | None = None,
) -> LLM:
    """Load a model: a name in models.toml, a .gguf path (any shard of a split file), or a HF
    folder.

    `device` is "cpu", "cuda" or "auto": a GPU where one can be used. `cache` is how many bits a GPU
    keeps of each value of the conversation, "16bit" or "8bit". `vram` and `ram` are what we may
    use, in bytes or as "24GiB"; `context` in tokens; `residency` is how weights stay in RAM:
    "mapped", "owned" (docs/placement.md) or "auto"; `engine` is ours, "hybrid", or "llama.cpp", or
    "auto": ours where it covers model and machine; `progress` is called with `Progress` values.
    Raises LocalR1Error: ModelNotFound, BadFile, Unsupported, DoesNotFit.
    """
    if threads is not None and threads < 1:
        raise LocalR1Error(f"threads is {threads}", "1 is the least; None takes the cores", USAGE)
    return LLM(
        registry.resolve(model),
        engine,
        device=device,
        cache=cache,
        vram=size_in_bytes(vram),
        ram=size_in_bytes(ram),
        context=context,
        threads=threads,
        residency=residency,
        report=progress or (lambda value: None),
    )


def size_in_bytes(size: int | str | None) -> int | None:
    """`"24GiB"`, `"24 GB"` or a number of bytes -> bytes."""
    if size is None or isinstance(size, int):
        return size
    try:
        return parse_size(size, bare=1)
    except ValueError:
        raise LocalR1Error(f"{size!r} is not a size", "write it as 24GiB, 24GB or bytes") from None
