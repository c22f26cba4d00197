"""localr1: run DeepSeek-R1 and its family on one machine.

    llm = localr1.load("tiny-r1")
    for event in llm.chat().reply("What is 347 + 586?"): ...

Names are imported when they are first used, so that `localr1 --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams
    from localr1.errors import LocalR1Error
    from localr1.events import Content, Done, GenerationStats, Progress, Reasoning
    from localr1.llm import LLM, load

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Content",
    "Done",
    "GenerationStats",
    "LocalR1Error",
    "Progress",
    "Reasoning",
    "SamplingParams",
    "load",
]

_HOME = {
    "LLM": "llm",
    "load": "llm",
    "SamplingParams": "engine.sampler",
    "LocalR1Error": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'localr1' has no attribute {name!r}")
    return getattr(import_module(f"localr1.{_HOME.get(name, 'events')}"), name)
