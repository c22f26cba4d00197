"""The commands about this machine and its settings: bench, doctor, config."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from localr1.cli.base import (
    Cache,
    Debug,
    Device,
    Json,
    OptionalModel,
    Ram,
    Threads,
    Vram,
    app,
    cache_of,
    guarded,
    settings_of,
)
from localr1.errors import USAGE, LocalR1Error

_SYNTHETIC = "With --synthetic"


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
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Run a known model's shapes with random weights.")
    ] = False,
    quant: Annotated[str | None, typer.Option(help=f"{_SYNTHETIC}: the quant; Q4_K_M.")] = None,
    device: Device = None,
    cache: Cache = None,
    vram: Vram = None,
    ram: Ram = None,
    context: Annotated[int | None, typer.Option(help=f"{_SYNTHETIC}: tokens; 8192.")] = None,
    layers: Annotated[int | None, typer.Option(help=f"{_SYNTHETIC}: only so many layers.")] = None,
    stub: Annotated[
        bool, typer.Option("--stub", help=f"{_SYNTHETIC}: experts that answer at once.")
    ] = False,
    prefill: Annotated[
        int | None, typer.Option(help=f"{_SYNTHETIC}: read a prompt of so many tokens too.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help=f"{_SYNTHETIC}: tokens to write; 20.")] = None,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how fast a model runs here, or the kernels; the last line is JSON."""
    given = {
        "quant": quant, "context": context, "layers": layers, "stub": stub or None,
        "prefill": prefill, "tokens": tokens,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if synthetic:
        sizes = {"vram": _size("--vram", vram), "ram": _size("--ram", ram)}
        given |= {name: size for name, size in sizes.items() if size is not None}
        _bench_synthetic(model, {**given, "threads": threads, "cache": cache}, as_json, kernels)
        return
    if given:
        raise LocalR1Error(f"--{next(iter(given))} goes with --synthetic", "add it", USAGE)
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
    names = ("device", "cache", "vram", "ram", "threads")
    bench_module.main(settings["model"], as_json, **{name: settings[name] for name in names})


def _bench_synthetic(
    model: str | None, given: dict[str, Any], as_json: bool, kernels: bool
) -> None:
    if model is None or kernels:
        hint = "`localr1 bench --synthetic deepseek-r1`"
        raise LocalR1Error("--synthetic takes a known model, and no --kernels", hint, USAGE)
    for name in ("context", "layers", "prefill", "tokens"):
        if given.get(name, 1) < 1:
            raise LocalR1Error(f"--{name} is {given[name]}", "1 is the least", USAGE)
    from localr1 import bench_synthetic

    options = bench_synthetic.Options(**{**given, "cache": cache_of(given["cache"])})
    bench_synthetic.main(model, options, as_json)


def _size(flag: str, text: str | None) -> int | None:
    """Bytes; a bare number is GiB."""
    from localr1.sizes import Size

    try:
        return None if text is None else Size(text)
    except ValueError:
        hint = f"write {flag} 24 for GiB, or 24GB"
        raise LocalR1Error(f"{flag} is {text!r}, which is no size", hint, USAGE) from None


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
