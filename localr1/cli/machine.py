"""The commands about this machine and its settings: bench, doctor, config."""

from __future__ import annotations

from typing import Annotated

import typer

from localr1.cli.base import Debug, Json, OptionalModel, Threads, app, guarded, settings_of
from localr1.errors import USAGE, LocalR1Error


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

    settings = settings_of(ctx.params)
    bench_module.main(settings["model"], settings["threads"], as_json)


@app.command()
@guarded
def doctor(
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure speeds anew, in up to ten seconds.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Check this machine: what was found, what is needed, what would help."""
    from localr1 import doctor as checkup

    return checkup.main(remeasure, as_json)


@app.command()
@guarded
def config(
    name: Annotated[str | None, typer.Argument(help="Print only this setting's value.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show every setting, its value and where it came from."""
    from localr1 import configured

    configured.main(name, as_json)
