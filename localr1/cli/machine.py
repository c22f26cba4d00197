"""The commands about this machine: bench."""

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
