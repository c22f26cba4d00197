"""The command that tells before anything is downloaded: plan."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated

import typer

from localr1.cli.base import Cache, Debug, Json, app, cache_of, guarded
from localr1.errors import NO_MEMORY, USAGE, LocalR1Error

if TYPE_CHECKING:
    from offload.hardware import Hardware


_FACTS = {"ram_bandwidth": "ram_bandwidth", "pcie": "gpu.pcie", "vram_bandwidth": "gpu.bandwidth"}


@app.command()
@guarded
def plan(
    model: Annotated[
        str | None, typer.Argument(help="A known name, NAME:QUANT, a file or a folder; or none.")
    ] = None,
    vram: Annotated[
        str | None, typer.Option(help="Plan for a GPU of so many GiB that is not here; 24GB too.")
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="Plan for so many GiB of free RAM; 382GB too.")
    ] = None,
    ram_bandwidth: Annotated[float | None, typer.Option(help="GB/s that RAM is read at.")] = None,
    pcie: Annotated[float | None, typer.Option(help="GB/s from RAM to the GPU.")] = None,
    vram_bandwidth: Annotated[float | None, typer.Option(help="GB/s that VRAM is read at.")] = None,
    context: Annotated[
        str | None, typer.Option(help="Tokens of conversation to make room for; 16k is 16,384.")
    ] = None,
    cache: Cache = None,
    quant: Annotated[str | None, typer.Option(help="Which quant, as in Q4_K_M.")] = None,
    explain: Annotated[
        str | None, typer.Option(help="Say why this weight lies where it does.")
    ] = None,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure this machine anew.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Say whether a model fits a machine, where it would lie, and how fast it would be."""
    from localr1 import choices
    from localr1 import plan as telling

    speeds = {
        "ram_bandwidth": ram_bandwidth, "pcie": pcie, "vram_bandwidth": vram_bandwidth,
    }  # fmt: skip
    wish = choices.Wish(_tokens(context), cache_of(cache))
    machine = _machine(vram, ram, speeds, remeasure)
    if model is None:
        if quant or explain:
            raise LocalR1Error("--quant and --explain go with a model", "name one", USAGE)
        rows = list(choices.everything(machine, wish))
        print(json.dumps(telling.listing_json(rows)) if as_json else telling.table(rows))
        return 0
    choice = choices.find(model, quant, machine, wish)
    if explain:
        print(telling.explain(choice, explain))
        return 0
    others = choices.alternatives(choice, machine, wish)
    roomier = choices.in_8_bits(choice, machine)
    if as_json:
        print(json.dumps(telling.to_json(choice, [roomier, *others] if roomier else others)))
    else:
        given = {_FACTS[name] for name, value in speeds.items() if value is not None}
        print(telling.card(choice, machine, others, given, roomier))
    return 0 if choice.fits else NO_MEMORY


def _machine(
    vram: str | None, ram: str | None, speeds: dict[str, float | None], remeasure: bool
) -> Hardware:
    """This machine, or one on paper as soon as its VRAM or RAM is given."""
    from dataclasses import replace

    for name, value in speeds.items():
        if value is not None and not 0 < value < 1e6:
            raise LocalR1Error(f"--{name.replace('_', '-')} is {value:g} GB/s", "", USAGE)
    given = {name: value * 1e9 for name, value in speeds.items() if value is not None}
    if vram is None and ram is None:
        found = _this_machine(remeasure)
        if "ram_bandwidth" in given:
            found = replace(found, ram_bandwidth=given["ram_bandwidth"])
        gpus = tuple(
            replace(
                gpu,
                pcie=given.get("pcie", gpu.pcie),
                bandwidth=given.get("vram_bandwidth", gpu.bandwidth),
            )
            for gpu in found.gpus
        )
        return replace(found, gpus=gpus)
    from offload.hardware import on_paper
    from offload.memory import available_bytes

    room = _size("--ram", ram) if ram is not None else available_bytes()
    card = _size("--vram", vram) if vram is not None else 0
    return on_paper(vram=card or None, ram=room, **given)


def _this_machine(remeasure: bool) -> Hardware:
    import sys

    from localr1.machine import hardware
    from localr1.progress import ProgressLine

    with ProgressLine(sys.stderr) as line:
        return hardware(remeasure, line.show)


def _size(flag: str, text: str) -> int:
    from localr1.sizes import Size

    try:
        return Size(text)
    except ValueError:
        hint = f"write {flag} 24 for GiB, or 24GB"
        raise LocalR1Error(f"{flag} is {text!r}, which is no size", hint, USAGE) from None


def _tokens(text: str | None) -> int | None:
    """`16k` and `16384` are 16,384 tokens."""
    if text is None:
        return None
    from localr1.sizes import Tokens

    with contextlib.suppress(ValueError):
        if 1 < (tokens := Tokens(text)) < 1 << 31:
            return tokens
    raise LocalR1Error(f"--context is {text!r}", "write it as 16k or 16384", USAGE)
