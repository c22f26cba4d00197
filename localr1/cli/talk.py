"""The commands that talk to a model, and what is kept of it: chat, run, sessions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import localr1
from localr1.cli.base import (
    Cache,
    Context,
    Debug,
    Device,
    Engine,
    Json,
    MaxTokens,
    MinP,
    Model,
    Ram,
    RepetitionPenalty,
    Residency,
    Seed,
    Stop,
    System,
    Temperature,
    Threads,
    TopK,
    TopP,
    Vram,
    app,
    guarded,
    settings_of,
)
from localr1.errors import USAGE, LocalR1Error
from localr1.registry import is_known

if TYPE_CHECKING:
    from localr1.chat.session import Session
    from localr1.chat.views import ThinkMode

Think = Annotated[
    str | None, typer.Option(help="How thoughts are shown: fold (to one line), show or hide.")
]
ThinkBudget = Annotated[
    int | None, typer.Option(help="Close a thought after this many tokens; 0: no thought.")
]
ThinkMore = Annotated[
    int | None,
    typer.Option(help="Make the model go on thinking this many times when it wants to stop."),
]
NoThink = Annotated[bool, typer.Option("--no-think", help="Answer without a thought.")]
ModelOrName = Annotated[
    str | None,
    typer.Argument(help="A known name, a .gguf file or a folder; with --resume: a conversation."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a conversation: the one named, or the last.")
]
Files = Annotated[
    list[Path] | None, typer.Option("--file", help="A text file to ask about; may be repeated.")
]
Output = Annotated[
    Path | None, typer.Option(help="Write here instead of to stdout, all at once at the end.")
]
Samples = Annotated[int, typer.Option(min=1, help="Answer this many times.")]
Vote = Annotated[
    bool, typer.Option("--vote", help="Print the result that most samples have, alone.")
]


@app.command()
@guarded
def chat(
    ctx: typer.Context,
    model: ModelOrName = None,
    resume: Resume = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    system: System = None,
    think: Think = None,
    think_budget: ThinkBudget = None,
    think_more: ThinkMore = None,
    no_think: NoThink = False,
    context: Context = None,
    engine: Engine = None,
    device: Device = None,
    cache: Cache = None,
    vram: Vram = None,
    ram: Ram = None,
    threads: Threads = None,
    residency: Residency = None,
    debug: Debug = False,
) -> int | None:
    """Talk to a model, or go on with an earlier talk."""
    return _converse(ctx.params, resume)


@app.command()
@guarded
def run(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask; without it: chat.")
    ] = None,
    file: Files = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    system: System = None,
    think: Think = None,
    think_budget: ThinkBudget = None,
    think_more: ThinkMore = None,
    no_think: NoThink = False,
    samples: Samples = 1,
    vote: Vote = False,
    context: Context = None,
    engine: Engine = None,
    device: Device = None,
    cache: Cache = None,
    vram: Vram = None,
    ram: Ram = None,
    threads: Threads = None,
    residency: Residency = None,
    output: Output = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int | None:
    """Answer one prompt (with files, and what is piped in), or chat if there is neither."""
    words = " ".join(prompt or ())
    if not words and not file and sys.stdin.isatty():
        if as_json or output or vote:
            problem = "this needs one prompt to answer, and there is none"
            raise LocalR1Error(problem, "add the prompt", USAGE)
        return _converse(ctx.params, resume=False)
    return _answer_once(ctx.params, words)


@app.command()
@guarded
def sessions(
    action: Annotated[str | None, typer.Argument(help="rm, to delete one.")] = None,
    name: Annotated[list[str] | None, typer.Argument(help="What to delete.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the conversations that are kept, or delete some."""
    from localr1.chat import archive

    if action is None:
        listed = archive.listing()
        print(json.dumps({"sessions": listed}) if as_json else archive.listing_text(listed))
        return
    if action != "rm" or not name:
        problem = f"sessions does not know {action!r}" if action != "rm" else "rm needs a name"
        raise LocalR1Error(problem, "localr1 sessions [rm NAME…]", USAGE)
    for one in name:
        archive.remove(one)


def _answer_once(flags: dict[str, Any], words: str) -> int:
    from localr1.chat.files import attachment, check_writable

    parts = [*map(attachment, flags["file"] or ()), _piped()]
    prompt = "\n\n".join(part for part in (*parts, words) if part)
    if not prompt:
        raise LocalR1Error("there is nothing to answer", "add a prompt, or pipe text in", USAGE)
    if flags["output"] is not None:
        check_writable(flags["output"])
    session = _open(flags)
    from localr1.chat import oneshot

    return oneshot.run(
        session,
        prompt,
        json_lines=flags["as_json"],
        think=_think(flags),
        output=flags["output"],
        samples=flags["samples"],
        vote=flags["vote"],
    )


def _piped() -> str:
    """Everything on stdin, unless that is a terminal."""
    if sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _converse(flags: dict[str, Any], resume: bool) -> int | None:
    from localr1.chat import archive

    saved = archive.load(flags["model"] or archive.latest()) if resume else None
    if saved is not None:
        flags = {**flags, "model": saved.model}
    think = _think(flags)
    session = _open(flags)
    from localr1.chat import repl
    from localr1.chat.commands import Chat
    from localr1.chat.commands.keeping import resumed
    from localr1.chat.saving import Saver

    if saved is not None:
        saved.transcript.system = flags["system"] or saved.transcript.system
        session.transcript = saved.transcript
    saver = Saver(session, _asked(flags), saved)
    chat = Chat(
        session,
        saver,
        say=lambda line: print(line, file=sys.stdout if sys.stdin.isatty() else sys.stderr),
        load=lambda model: _open({**flags, "model": model}),
        think=think,
    )
    if saved is not None:
        chat.say(resumed(saved, saver.restore_cache()))
    return repl.converse(chat)


def _asked(flags: dict[str, Any]) -> str:
    """The model as the user calls it, in a form that holds in any folder."""
    model = str(settings_of(flags)["model"])
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() and not is_known(model) else model


def _think(flags: dict[str, Any]) -> ThinkMode:
    """How thoughts are shown."""
    from localr1.chat.views import THINK_MODES

    wanted = settings_of(flags)["think"]
    for mode in THINK_MODES:
        if mode == wanted:
            return mode
    raise LocalR1Error(f"thoughts cannot be shown as {wanted!r}", ", ".join(THINK_MODES), USAGE)


def _open(flags: dict[str, Any]) -> Session:
    """Load the model that the flags name, for an empty conversation set up as they say."""
    settings = settings_of(flags)
    from localr1.chat.session import Session
    from localr1.chat.thinking import Thinking
    from localr1.engine.sampler import SamplingParams
    from localr1.progress import ProgressLine

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    sampling = {name: settings[name] for name in names}
    params = SamplingParams(**sampling, stop=tuple(flags["stop"] or ()))
    budget = 0 if flags["no_think"] else settings["think_budget"]
    thinking = Thinking(budget, settings["think_more"])
    with ProgressLine(sys.stderr) as progress:
        llm = localr1.load(
            settings["model"],
            engine=settings["engine"],
            device=settings["device"],
            cache=settings["cache"],
            vram=settings["vram"],
            context=settings["context"],
            threads=settings["threads"],
            residency=str(settings["residency"]),
            ram=settings["ram"],
            progress=progress.show,
        )
    for note in llm.engine.notes:
        print(note, file=sys.stderr)
    return Session(llm, settings["system"], params, thinking)
