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
_OF_MACHINE = ("device", "cache", "vram", "ram", "threads")
_TAKES = {  # what means something to each form of `bench`
    "bench MODEL": _OF_MACHINE,
    "bench --kernels": ("formats", "seconds", "threads"),
    "bench --synthetic": (
        *_OF_MACHINE, "quant", "context", "layers", "stub", "prefill", "tokens",
    ),
}  # fmt: skip
_OF_ALL = ("model", "kernels", "synthetic", "as_json", "debug")


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
    context: Annotated[str | None, typer.Option(help=f"{_SYNTHETIC}: tokens; 8192, or 8k.")] = None,
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
    flags = {
        k: value for k, value in ctx.params.items() if value is not None and value is not False
    }
    if kernels and synthetic:
        raise LocalR1Error("--kernels and --synthetic are two benches", "leave one out", USAGE)
    form = "--kernels" if kernels else "--synthetic" if synthetic else "MODEL"
    _refuse_meaningless(flags, f"bench {form}")
    if synthetic:
        _bench_synthetic(model, flags)
    elif kernels:
        _bench_kernels(flags)
    else:
        from localr1 import bench as bench_module

        settings = settings_of(flags)
        options = {name: settings[name] for name in _OF_MACHINE}
        bench_module.main(settings["model"], as_json, **options)


def _refuse_meaningless(flags: dict[str, Any], form: str) -> None:
    """LocalR1Error for a flag that this form of `bench` would ignore."""
    for name in flags:
        if name in (*_OF_ALL, *_TAKES[form]):
            continue
        others = " or ".join(f"`{other}`" for other, takes in _TAKES.items() if name in takes)
        raise LocalR1Error(f"--{name} means nothing to `{form}`", f"it goes with {others}", USAGE)


def _bench_kernels(flags: dict[str, Any]) -> None:
    if "model" in flags:
        raise LocalR1Error("--kernels needs no model", "leave out the model", USAGE)
    from localr1 import bench_kernels
    from localr1.settings import Settings

    threads = Settings(flags)["threads"]
    how = flags.get("formats"), flags.get("seconds"), threads, "as_json" in flags
    bench_kernels.main(*how)


def _bench_synthetic(model: str | None, flags: dict[str, Any]) -> None:
    if model is None:
        hint = "`localr1 bench --synthetic deepseek-r1`"
        raise LocalR1Error("--synthetic takes a known model", hint, USAGE)
    for name in ("layers", "prefill", "tokens"):
        if flags.get(name, 1) < 1:
            raise LocalR1Error(f"--{name} is {flags[name]}", "1 is the least", USAGE)
    from localr1 import bench_synthetic
    from localr1.settings import Settings

    settings = Settings({name: flags.get(name) for name in (*_OF_MACHINE, "context")})
    names = ("quant", "layers", "stub", "prefill", "tokens")
    given: dict[str, Any] = {name: flags[name] for name in names if name in flags}
    if "context" in flags:  # a setting is for conversations
        given["context"] = settings["context"]
    given |= {name: settings[name] for name in ("device", "vram", "ram", "threads")}
    options = bench_synthetic.Options(**given, cache=cache_of(flags.get("cache")))
    bench_synthetic.main(model, options, "as_json" in flags)


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
