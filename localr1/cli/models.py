"""The commands about models and their files: list, show, pull, rm, verify."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from localr1.cli.base import Debug, Json, Model, app, guarded

if TYPE_CHECKING:
    from localr1.download import Job
    from localr1.registry import ModelEntry
    from localr1.store import Stored

Name = Annotated[
    str, typer.Argument(help="NAME[:QUANT] of `localr1 list`, or hf:OWNER/REPO[:QUANT or file].")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
@guarded
def list_models(as_json: Json = False, debug: Debug = False) -> None:
    """List the known models, and what is here of them."""
    from localr1 import listing

    models = listing.listing()
    print(json.dumps({"models": models}) if as_json else listing.text(models))


@app.command("show")
@guarded
def show_model(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Show what a model is: sizes, formats, licence, what it can do."""
    from localr1 import listing, registry, show
    from localr1.errors import ModelNotFound

    try:
        facts = show.facts(registry.resolve(model))
    except ModelNotFound as error:
        entry = registry.parse(model)[0] if registry.is_known(model) else None
        if entry is None:
            raise
        known = listing.known(entry, error)
        print(json.dumps(known) if as_json else listing.known_text(known))
        return
    print(json.dumps(facts) if as_json else show.facts_text(facts))


@app.command()
@guarded
def pull(model: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Fetch a model's files, or go on with a download that was cut off."""
    from localr1 import download, registry
    from localr1.progress import ProgressLine

    name, quant, entry = registry.name_of(model)
    if entry is not None and entry.files:
        print(f"{name} is part of localr1", file=sys.stderr)
        print(registry.resolve(name).path)
        return
    here = registry.here(name, quant)
    stored = next((one for one in here if one.manifest.complete and not one.missing), None)
    if stored is not None:
        print(f"{stored.name} is here already", file=sys.stderr)
    else:
        if quant is None:  # what was begun goes before what would be chosen
            quant = here[0].manifest.quant if here else _quant_for(entry)
        job = download.prepare(name, quant, entry)
        _announce(job)
        try:
            with ProgressLine(sys.stderr) as progress:
                stored = download.fetch(job, progress.show)
        except KeyboardInterrupt:
            whole, there = (download.size(n) for n in (job.stored.nbytes, job.stored.nbytes_here))
            again = f"`localr1 pull {job.stored.name}` goes on from there"
            print(f"stopped: {there} of {whole} are here, and {again}", file=sys.stderr)
            raise
        print(f"{stored.name} is here, and its checksums are the hub's", file=sys.stderr)
    print(json.dumps(_fetched(stored)) if as_json else stored.path)


def _quant_for(entry: ModelEntry | None) -> str | None:
    """The quant that the plan finds best for this machine; None leaves it to the repository."""
    if entry is None:
        return None
    from localr1 import choices, machine, plan
    from localr1.errors import DoesNotFit
    from localr1.progress import ProgressLine

    with ProgressLine(sys.stderr) as progress:
        hardware = machine.hardware(report=progress.show)
    choice = choices.best_quant(entry, hardware)
    if choice is None:
        return entry.default_quant
    if not choice.fits:
        hint = (
            f"`localr1 plan` says what does; `localr1 pull {choice.name}` fetches it all the same"
        )
        raise DoesNotFit(f"no quant of {entry.name} fits here: {plan.verdict(choice)}", hint)
    print(plan.verdict(choice), file=sys.stderr)
    return choice.quant


def _announce(job: Job) -> None:
    from localr1.download import size

    manifest, files = job.stored.manifest, len(job.files)
    left = job.nbytes_left
    rest = "" if left == job.stored.nbytes else f", {size(left)} of it still to come"
    print(
        f"{job.stored.name}   {size(job.stored.nbytes)} in {files} file{'s'[: files > 1]}{rest}\n"
        f"from {manifest.repo}   licence {manifest.licence or 'not stated'}\n"
        f"to {job.stored.folder}",
        file=sys.stderr,
    )


def _fetched(stored: Stored) -> dict[str, object]:
    return {
        "name": stored.name,
        "quant": stored.manifest.quant,
        "path": str(stored.path),
        "bytes": stored.nbytes,
        "repository": stored.manifest.repo,
        "commit": stored.manifest.commit,
        "licence": stored.manifest.licence,
        "files": {file.name: file.sha256 for file in stored.manifest.files},
    }


@app.command()
@guarded
def rm(model: Name, yes: Yes = False, debug: Debug = False) -> int:
    """Remove a fetched model: all of it, or the quant that is named."""
    from localr1 import registry, store
    from localr1.download import size
    from localr1.errors import FAILURE, USAGE, LocalR1Error, ModelNotFound

    name, quant, entry = registry.name_of(model)
    if entry is not None and entry.files:
        raise LocalR1Error(f"{name} is part of localr1", "it goes when localr1 is uninstalled")
    found = registry.here(name, quant)
    if not found:
        raise ModelNotFound(f"{model} is not on this machine", "`localr1 list` shows what is")
    what = ", ".join(f"{stored.name} ({size(stored.nbytes_here)})" for stored in found)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            hint = "--yes removes without asking"
            raise LocalR1Error("rm asks first, and there is no terminal to ask on", hint, USAGE)
        print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed", file=sys.stderr)
            return FAILURE
    for stored in found:
        store.remove(stored)
    print(f"removed {what}", file=sys.stderr)
    return 0


@app.command()
@guarded
def verify(model: Model, as_json: Json = False, debug: Debug = False) -> int:
    """Compare the sha256 of a model's files with the recorded values."""
    from localr1 import registry
    from localr1 import verify as sums

    return sums.report(sums.verify(registry.resolve(model)), as_json)
