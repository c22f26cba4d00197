"""The commands about models and their files: list, show, verify."""

from __future__ import annotations

import json

from localr1.cli.base import Debug, Json, Model, app, guarded


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
