"""`limner models`: the model repository."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from limner.cli.common import (
    SERVER,
    AsJson,
    ModelArgument,
    Server,
    connect,
    make_table,
    note,
    print_json,
    print_table,
)
from limner.types import Model

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, load, promote and delete models.")


@app.command("list")
def list_(server: Server = SERVER, as_json: AsJson = False) -> None:
    """List all versions of all models, the broken ones with the reason."""
    with connect(server) as client:
        models = client.models()
    if as_json:
        print_json({"models": [model.to_dict() for model in models]})
        return
    table = make_table("models", "model", "state", "aliases", "labels", "architecture", "auc", "digest")
    for model in models:
        auc = next((f"{metric.value:.3f}" for metric in model.metrics if metric.name == "auc"), "")
        table.add_row(
            str(model.identity),
            Text(f"{model.state}: {model.error}" if model.error else model.state),
            ", ".join(model.aliases),
            Text(", ".join(model.labels)),
            model.architecture,
            auc,
            model.identity.digest[:12],
        )
    print_table(table)


@app.command()
def show(model: ModelArgument, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Show a version: metrics with their intervals, labels, grid, digest; with --json the whole card."""
    with connect(server) as client:
        found = client.model(model)
    if as_json:
        print_json(found)
        return
    facts = make_table(f"model {found.identity}", "", "")
    facts.show_header = False
    grid = f"{found.grid.fov_mm:g} mm in {found.grid.size} pixels" if found.grid else ""
    for name, value in (
        ("state", f"{found.state} {found.error}".strip()),
        ("aliases", ", ".join(found.aliases)),
        ("labels", ", ".join(found.labels)),
        ("grid", grid),
        ("architecture", found.architecture),
        ("threshold", f"{found.threshold:.3f}"),
        ("trained", f"{found.created:%Y-%m-%d %H:%M} UTC" if found.created else ""),
        ("sha256", found.identity.digest),
        *((metric.name, f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})") for metric in found.metrics),
        *_doubts(found),
    ):
        facts.add_row(name, Text(value))
    print_table(facts)


def leakage(model: Model) -> str:
    """Say how many slices of different subjects look alike; empty where none do, or an older card does not tell."""
    evaluation = model.card.get("evaluation")
    pairs = evaluation.get("similar_found") if isinstance(evaluation, dict) else None
    return f"{pairs} pair{'' if pairs == 1 else 's'} of slices of different subjects look alike" if pairs else ""


def _doubts(model: Model) -> Iterator[tuple[str, str]]:
    """What the card says against the metrics: chance, and possible leakage."""
    evaluation = model.card.get("evaluation")
    if not isinstance(evaluation, dict):
        return
    if isinstance(test := evaluation.get("permutation"), dict):
        yield "permutation test", f"p {test['p']:.2g}"
    yield "possible leakage", leakage(model) or "none found"


@app.command()
def load(model: ModelArgument, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Load a version and warm it."""
    with connect(server) as client:
        _report(client.load_model(model), as_json)


@app.command()
def unload(model: ModelArgument, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Take a version out of memory; the next request loads it again."""
    with connect(server) as client:
        _report(client.unload_model(model), as_json)


@app.command()
def promote(
    model: ModelArgument,
    alias: Annotated[str, typer.Option(help="The alias that shall point at it.")] = "production",
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, in one step.

    \b
    Example:
      limner models promote cervix:3 --alias production
    """  # noqa: D301  \b keeps the lines apart
    with connect(server) as client:
        _report(client.promote_model(model, alias), as_json)


@app.command()
def delete(model: ModelArgument, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Delete a version, NAME:VERSION."""
    with connect(server) as client:
        client.delete_model(model)
    if as_json:
        print_json({"deleted": model})
    else:
        note(f"deleted {model}")


def _report(model: Model, as_json: bool) -> None:
    if as_json:
        print_json(model)
    else:
        aliases = f", aliases {', '.join(model.aliases)}" if model.aliases else ""
        note(f"{model.identity} is {model.state}{aliases}")
