"""The command line: what can be typed, how it fails, and nothing of what it does.

Command bodies import what they need when they run, so that `--help` never waits for torch. stdout
carries answers and listings; everything else goes to stderr.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

import localr1
from localr1.errors import FAILURE, INTERRUPTED, NO_MEMORY, USAGE, LocalR1Error

if TYPE_CHECKING:
    from localr1.engine.sampler import SamplingParams
    from localr1.llm import LLM
    from localr1.settings import Settings

BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended

app = typer.Typer(
    name="localr1",
    help="Run DeepSeek-R1 and its family on this machine.",
    invoke_without_command=True,
    rich_markup_mode=None,  # importing rich for the help would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help="A known name, a .gguf file or a folder.")]
OptionalModel = Annotated[
    str | None, typer.Argument(help="A known name, a .gguf file or a folder; tiny-r1 if left out.")
]
Temperature = Annotated[
    float | None, typer.Option(help="0 always takes the likeliest token; higher is more varied.")
]
TopP = Annotated[float | None, typer.Option(help="Sample from this share of the probability.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many tokens; 0: no limit.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Leave out tokens below this share of the likeliest one's probability."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 makes tokens that were used before less likely.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="End an answer after this many tokens, thinking included.")
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End an answer before this text; may be repeated.")
]
System = Annotated[
    str | None, typer.Option(help="A system prompt; R1's makers advise against one.")
]
Context = Annotated[int | None, typer.Option(help="Room for the conversation, in tokens.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads to compute with.")]
Residency = Annotated[
    str | None,
    typer.Option(help="How weights stay in RAM: mapped (page cache), owned (huge pages) or auto."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of the `localr1` program."""
    if sys.stdin is None:  # closed by whoever started us
        sys.stdin = open(os.devnull)
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        # A usage error of click (or of typer's own copy of it, under another name).
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        message = describe()
        code = report(message[:1].lower() + message[1:].rstrip("."), "`localr1 --help`", USAGE)
    sys.exit(code)


def guarded(command: Callable[..., int | None]) -> Callable[..., int]:
    """Make `command` return its exit code; an error has then been told in two lines on stderr."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            code = command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more at its end; let that go nowhere, quietly.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except Exception as error:
            if kwargs.get("debug"):
                raise
            return _report_exception(error)
        return code or 0

    return run


def _report_exception(error: Exception) -> int:
    if isinstance(error, LocalR1Error):
        return report(str(error), error.hint, error.code)
    if isinstance(error, MemoryError):
        return report(
            "there is not enough memory", "a smaller --context or model may fit", NO_MEMORY
        )
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return report(f"internal: {what}", "this is a bug; --debug shows where it happened", FAILURE)


def report(message: str, hint: str, code: int) -> int:
    """Print the error form to stderr; returns `code`."""
    print(f"error: {message}" + (f"\nhint:  {hint}" if hint else ""), file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"localr1 {localr1.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


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


@app.command("list")
@guarded
def list_models(as_json: Json = False, debug: Debug = False) -> None:
    """List the known models."""
    from localr1 import show

    models = show.listing()
    print(json.dumps({"models": models}) if as_json else show.listing_text(models))


@app.command("show")
@guarded
def show_model(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a model is: sizes, formats, licence, what it can do."""
    from localr1 import registry, show

    facts = show.facts(registry.resolve(model))
    print(json.dumps(facts) if as_json else show.facts_text(facts))


@app.command()
@guarded
def verify(model: Model, as_json: Json = False, debug: Debug = False) -> int:
    """Compare the sha256 of a model's files with the recorded values."""
    from localr1 import registry
    from localr1 import verify as sums

    return sums.report(sums.verify(registry.resolve(model)), as_json)


@app.command()
@guarded
def bench(
    ctx: typer.Context,
    model: OptionalModel = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Measure the expert kernels, not a model.")
    ] = False,
    formats: Annotated[
        str | None, typer.Option(help="With --kernels: which weight formats, as in Q4_K,Q8_0.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="With --kernels: seconds for each figure; 5 if left out.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how fast a model runs here, or the kernels; the last line is JSON."""
    if kernels:
        if model is not None:
            raise LocalR1Error("--kernels needs no model", "leave out the model", USAGE)
        from localr1 import bench_kernels

        bench_kernels.main(formats, seconds, threads, as_json)
        return
    if formats is not None or seconds is not None:
        raise LocalR1Error("--formats and --seconds go with --kernels", "add --kernels", USAGE)
    from localr1 import bench as bench_module

    settings = _settings(ctx.params)
    bench_module.main(settings["model"], settings["threads"], as_json)


def _piped() -> str:
    """Everything on stdin, unless that is a terminal."""
    if sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _answer_once(flags: dict[str, Any], prompt: str, as_json: bool) -> int:
    if not prompt:
        raise LocalR1Error("there is nothing to answer", "add a prompt, or pipe text in", USAGE)
    llm, params, system = _load(flags)
    from localr1.chat import oneshot

    return oneshot.run(llm, prompt, system=system, params=params, json_lines=as_json)


def _converse(flags: dict[str, Any]) -> int | None:
    llm, params, system = _load(flags)
    from localr1.chat import repl

    return repl.chat(llm, system=system, params=params)


def _load(flags: dict[str, Any]) -> tuple[LLM, SamplingParams, str | None]:
    """Load the model that the flags name; how it is to sample, and the system prompt."""
    settings = _settings(flags)
    from localr1.engine.sampler import SamplingParams
    from localr1.progress import ProgressLine

    with ProgressLine(sys.stderr) as progress:
        llm = localr1.load(
            settings["model"],
            context=settings["context"],
            threads=settings["threads"],
            residency=str(settings["residency"]),
            progress=progress.show,
        )
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    sampling = {name: settings[name] for name in names}
    return llm, SamplingParams(**sampling, stop=tuple(flags["stop"] or ())), settings["system"]


def _settings(flags: dict[str, Any]) -> Settings:
    """The settings for a command, those that models.toml knows of its model included."""
    from localr1.registry import resolve
    from localr1.settings import Settings

    entry = resolve(Settings(flags)["model"]).entry
    return Settings(flags, model=entry.sampling if entry else None)
