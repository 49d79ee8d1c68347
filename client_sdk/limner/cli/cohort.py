"""`limner cohort`: labels from published tables, cohorts in, and what is in them."""

from typing import Annotated

import typer
from rich.text import Text

from limner.cli.cohort_import import import_
from limner.cli.common import SERVER, AsJson, Server, connect, make_table, note, print_json, print_table
from limner.cli.labels import labels

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Label, import, list, show and delete cohorts.")
app.command("labels")(labels)
app.command("import")(import_)

Name = Annotated[str, typer.Argument(metavar="COHORT", help="Name of the cohort.")]


@app.command("list")
def list_(server: Server = SERVER, as_json: AsJson = False) -> None:
    """List the cohorts."""
    with connect(server) as client:
        cohorts = client.cohorts()
    if as_json:
        print_json({"cohorts": [cohort.to_dict() for cohort in cohorts]})
        return
    table = make_table("cohorts", "name", "labels", "subjects", "slices", "digest")
    for cohort in cohorts:
        labels = ", ".join(cohort.labels)
        table.add_row(cohort.name, Text(labels), str(len(cohort.subjects)), str(cohort.slices), cohort.digest[:12])
    print_table(table)


@app.command()
def show(
    name: Name,
    instances: Annotated[bool, typer.Option("--instances", help="List the slices too (with --json).")] = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Show a cohort and its subjects."""
    with connect(server) as client:
        cohort = client.cohort(name, instances=instances)
    if as_json:
        print_json(cohort)
        return
    table = make_table(f"cohort {cohort.name}, digest {cohort.digest[:12]}", "subject", "label", "slices")
    for subject in cohort.subjects:
        table.add_row(subject.subject, Text(subject.label), str(subject.slices))
    print_table(table)


@app.command()
def delete(name: Name, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Delete a cohort and its pixels."""
    with connect(server) as client:
        client.delete_cohort(name)
    if as_json:
        print_json({"deleted": name})
    else:
        note(f"deleted cohort {name}")
