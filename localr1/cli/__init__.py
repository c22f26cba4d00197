"""The command line: what can be typed, how it fails, and nothing of what it does.

Command bodies import what they need when they run, so that `--help` never waits for torch. stdout
carries answers and listings; everything else goes to stderr. The commands: talk, models, machine,
planning.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import localr1
from localr1.cli import machine, models, planning, talk
from localr1.cli.base import app, report
from localr1.errors import USAGE

__all__ = ["app", "machine", "main", "models", "planning", "talk"]


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
