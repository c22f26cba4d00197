"""The commands that talk to a model: chat and run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

import localr1
from localr1.cli.base import (
    Context,
    Debug,
    Json,
    MaxTokens,
    MinP,
    Model,
    OptionalModel,
    RepetitionPenalty,
    Residency,
    Seed,
    Stop,
    System,
    Temperature,
    Threads,
    TopK,
    TopP,
    app,
    guarded,
    settings_of,
)
from localr1.errors import USAGE, LocalR1Error

if TYPE_CHECKING:
    from localr1.chat.session import Session
    from localr1.llm import LLM
    from localr1.settings import Settings

ThinkBudget = Annotated[
    int | None, typer.Option(help="Close a thought after this many tokens; 0: no thought.")
]
ThinkMore = Annotated[
    int | None,
    typer.Option(help="Make the model go on thinking this many times when it wants to stop."),
]
NoThink = Annotated[bool, typer.Option("--no-think", help="Answer without a thought.")]


@app.command()
@guarded
def chat(
    ctx: typer.Context,
    model: OptionalModel = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    system: System = None,
    think_budget: ThinkBudget = None,
    think_more: ThinkMore = None,
    no_think: NoThink = False,
    context: Context = None,
    threads: Threads = None,
    residency: Residency = None,
    debug: Debug = False,
) -> int | None:
    """Talk to a model."""
    return _converse(ctx.params)


@app.command()
@guarded
def run(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask; without it: chat.")
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    system: System = None,
    think_budget: ThinkBudget = None,
    think_more: ThinkMore = None,
    no_think: NoThink = False,
    context: Context = None,
    threads: Threads = None,
    residency: Residency = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int | None:
    """Answer one prompt (and what is piped in), or chat if there is neither."""
    words = " ".join(prompt or ())
    if not words and sys.stdin.isatty():
        if as_json:
            raise LocalR1Error(
                "--json answers one prompt, and there is none", "add the prompt", USAGE
            )
        return _converse(ctx.params)
    return _answer_once(
        ctx.params, "\n\n".join(part for part in (_piped(), words) if part), as_json
    )


def _piped() -> str:
    """Everything on stdin, unless that is a terminal."""
    if sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _answer_once(flags: dict[str, Any], prompt: str, as_json: bool) -> int:
    if not prompt:
        raise LocalR1Error("there is nothing to answer", "add a prompt, or pipe text in", USAGE)
    llm, settings = _load(flags)
    from localr1.chat import oneshot

    return oneshot.run(_session(llm, settings, flags), prompt, json_lines=as_json)


def _converse(flags: dict[str, Any]) -> int | None:
    llm, settings = _load(flags)
    from localr1.chat import repl

    return repl.chat(_session(llm, settings, flags))


def _load(flags: dict[str, Any]) -> tuple[LLM, Settings]:
    """Load the model that the flags name; the settings that hold for it."""
    settings = settings_of(flags)
    from localr1.progress import ProgressLine

    with ProgressLine(sys.stderr) as progress:
        llm = localr1.load(
            settings["model"],
            context=settings["context"],
            threads=settings["threads"],
            residency=str(settings["residency"]),
            progress=progress.show,
        )
    return llm, settings


def _session(llm: LLM, settings: Settings, flags: dict[str, Any]) -> Session:
    """An empty conversation: how it samples, how long it thinks, and its system prompt."""
    from localr1.chat.session import Session
    from localr1.chat.thinking import Thinking
    from localr1.engine.sampler import SamplingParams

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    sampling = {name: settings[name] for name in names}
    params = SamplingParams(**sampling, stop=tuple(flags["stop"] or ()))
    budget = 0 if flags["no_think"] else settings["think_budget"]
    return Session(llm, settings["system"], params, Thinking(budget, settings["think_more"]))
