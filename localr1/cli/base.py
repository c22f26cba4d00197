"""What all commands share: the program, options of one meaning, and how a command fails."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localr1.errors import FAILURE, INTERRUPTED, NO_MEMORY, LocalR1Error

if TYPE_CHECKING:
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
Context = Annotated[
    str | None, typer.Option(help="Room for the conversation, in tokens; 16k is 16,384.")
]
Engine = Annotated[
    str | None,
    typer.Option(help="hybrid (ours), llama.cpp, or auto: ours where it covers model and machine."),
]
Device = Annotated[
    str | None, typer.Option(help="Where to compute: cpu, cuda, or auto, a GPU if one can be used.")
]
Cache = Annotated[
    str | None,
    typer.Option(help="Bits of a value that a GPU keeps of the conversation: 16bit or 8bit."),
]
Vram = Annotated[str | None, typer.Option(help="VRAM that may be used, such as 24GiB or 24.")]
Ram = Annotated[str | None, typer.Option(help="RAM that may be used, such as 382GiB or 382.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads to compute with.")]
Residency = Annotated[
    str | None,
    typer.Option(help="How weights stay in RAM: mapped (page cache), owned (huge pages) or auto."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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
    """Print the error form to stderr; returns `code`. Names in it may be those of strangers."""
    from localr1.chat.terminal import clean

    print(clean(f"error: {message}" + (f"\nhint:  {hint}" if hint else "")), file=sys.stderr)
    return code


def cache_of(flag: str | None) -> str:
    """The form of a GPU's cache, for commands that load no model. Raises LocalR1Error."""
    from localr1.models.cache_layout import checked
    from localr1.settings import Settings

    return checked(str(Settings({"cache": flag})["cache"]))


def settings_of(flags: dict[str, Any]) -> Settings:
    """The settings for a command, those that models.toml knows of its model included."""
    from localr1.registry import resolve
    from localr1.settings import Settings

    entry = resolve(Settings(flags)["model"]).entry
    return Settings(flags, model=entry.sampling if entry else None)
