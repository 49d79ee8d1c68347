"""`limner cohort`: cohorts in, and what is in them."""

import os
from collections import Counter
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from limner.cli.common import (
    FAILED,
    SERVER,
    AsJson,
    Server,
    connect,
    make_table,
    note,
    print_json,
    print_table,
    progress_bar,
)
from limner.cohort_import import FolderImport, FolderSurvey, default_key_file, label_slices, survey_folder
from limner.cohorts import CohortPlan
from limner.imaging import load_or_create_key
from limner.imaging.selection import Decision, Plane, SelectionRules
from limner.types import ImportResult

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import, list, show and delete cohorts.")

Name = Annotated[str, typer.Argument(metavar="COHORT", help="Name of the cohort.")]


class PlaneName(StrEnum):
    """A plane that can be asked for."""

    TRANSVERSE = "transverse"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"


class LabelBy(StrEnum):
    """What carries the label."""

    SUBJECT = "subject"
    PLANE = "plane"


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM, in any arrangement.")],
    name: Annotated[str, typer.Option(help="Name of the cohort; default: the folder's.")] = "",
    labels: Annotated[Path | None, typer.Option(help="CSV with the columns subject (PatientID) and label.")] = None,
    positive: Annotated[str | None, typer.Option(help="Class of interest; default: the last by alphabet.")] = None,
    plane: Annotated[list[PlaneName] | None, typer.Option(help="Keep this plane; may be given again.")] = None,
    min_slices: Annotated[int, typer.Option(min=1, help="Reject series of fewer slices.")] = 5,
    label_by: Annotated[LabelBy, typer.Option(help="Label subjects by the CSV, or slices by plane.")] = LabelBy.SUBJECT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be taken, send nothing.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on where labelled subjects have no images.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the pseudonyms' key; default: in the user's folder."),
    ] = None,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Find the T2-weighted series of a folder, pseudonymise them and add them to a cohort.

    Says of every series why it is taken or not. Only pixels, geometry and pseudonyms are sent. What is there already
    is not sent again, so an interrupted import is resumed by repeating it.

    \b
    Examples:
      limner cohort import mri/ --labels labels.csv --dry-run
      limner cohort import mri/ --name cervix --labels labels.csv --positive recurrent --plane transverse
      limner cohort import mri/ --name planes --label-by plane
    """  # noqa: D301  \b keeps the lines apart
    by_plane = label_by is LabelBy.PLANE
    if by_plane and labels is not None:
        raise typer.BadParameter("not with --label-by plane", param_hint="--labels")
    if not by_plane and labels is None and not dry_run:
        raise typer.BadParameter("needed, or --label-by plane", param_hint="--labels")
    # An oblique slice is of no plane, so it cannot be labelled by it.
    planes: list[Plane] = [one.value for one in plane or PlaneName]
    rules = SelectionRules(min_slices=min_slices)
    survey = _survey(folder, replace(rules, planes=frozenset(planes)) if plane or by_plane else rules)
    if not as_json:
        _show_survey(survey)
    if dry_run and labels is None and not by_plane:
        planned = None
    else:
        pseudonyms = load_or_create_key(key or default_key_file())
        planned = label_slices(survey, labels, positive=positive, allow_missing=allow_missing, key=pseudonyms)
        if not as_json:
            _show_plan(planned)
    result = None if dry_run or planned is None else _upload(server, name or folder.resolve().name, planned.plan)
    if as_json:
        print_json(_survey_fields(survey) | _plan_fields(planned) | ({"result": result.to_dict()} if result else {}))
    elif result:
        _show_result(result)
    if result and result.rejected:
        raise typer.Exit(FAILED)


def _survey(folder: Path, rules: SelectionRules) -> FolderSurvey:
    with progress_bar() as bar:
        task = bar.add_task("reading headers", total=sum(len(names) for _, _, names in os.walk(folder)))
        return survey_folder(folder, rules, progress=lambda: bar.advance(task))


def _upload(server: str, name: str, plan: CohortPlan) -> ImportResult:
    with connect(server) as client, progress_bar() as bar:
        task = bar.add_task("importing slices", total=len(plan.slices))
        return client.import_cohort(name, plan, progress=lambda done, _all: bar.update(task, completed=done))


def _verdict(decision: Decision) -> str:
    return "taken" if decision.accepted else "; ".join(decision.reasons)


def _survey_fields(survey: FolderSurvey) -> dict[str, Any]:
    return {
        "series": [
            {
                "subject": decision.series.patient_id,
                "description": decision.series.description,
                "plane": decision.series.plane,
                "slices": len(decision.series.slices),
                "taken": decision.accepted,
                "reasons": decision.reasons,
            }
            for decision in survey.decisions
        ],
        "unreadable": [{"name": str(path), "reason": reason} for path, reason in survey.unreadable],
    }


def _plan_fields(planned: FolderImport | None) -> dict[str, Any]:
    if planned is None:
        return {}
    return {
        "labels": planned.plan.labels,
        "slices": len(planned.plan.slices),
        "skipped": [{"name": name, "reason": reason} for name, reason in planned.skipped],
    }


def _show_survey(survey: FolderSurvey) -> None:
    table = make_table("series", "subject", "description", "plane", "slices", "verdict")
    for decision in survey.decisions:
        series = decision.series
        verdict = Text(_verdict(decision), style="green" if decision.accepted else "yellow")
        subject, description = Text(series.patient_id), Text(series.description)
        table.add_row(subject, description, series.plane, str(len(series.slices)), verdict)
    print_table(table)


def _show_plan(planned: FolderImport) -> None:
    for name, reason in planned.skipped:
        note(f"left out: {name}: {reason}")
    counts = Counter(one.label for one in planned.plan.slices)
    listed = ", ".join(f"{label} ({counts[label]} slices)" for label in planned.plan.labels)
    note(f"classes: {listed}; the class of interest is {planned.plan.labels[-1]!r}")


def _show_result(result: ImportResult) -> None:
    for rejection in result.rejected:
        note(f"refused: {rejection.id}: {rejection.error}")
    cohort = result.cohort
    note(
        f"cohort {cohort.name}: {result.added} slices added, {result.unchanged} there already, "
        f"{len(result.rejected)} refused; now {cohort.slices} slices of {len(cohort.subjects)} subjects"
    )


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
