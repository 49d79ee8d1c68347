"""`limner cohort import`: the T2-weighted series of a folder, labelled, pseudonymised and sent.

Which slices are taken, of whom, under which label, is `limner.cohort_import`'s; here are its options and what it says.
"""

from collections import Counter
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
from limner.cli.labels import PresetName, show_flow
from limner.cli.rules import Rules, read_folder, rules_of, survey_fields
from limner.cohort_flow import Flow, import_flow, read_flow
from limner.cohort_import import (
    MAX_NAMED,
    FolderImport,
    FolderSurvey,
    default_key_file,
    label_slices,
)
from limner.cohorts import CohortPlan
from limner.imaging import load_or_create_key
from limner.imaging.files import replace_file
from limner.imaging.rules import Range, SelectionRules
from limner.imaging.selection import Decision
from limner.imaging.series import Plane
from limner.presets import label_tables
from limner.presets.files import label_files
from limner.types import ImportResult


class PlaneName(StrEnum):
    """A plane that can be asked for."""

    TRANSVERSE = "transverse"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"


class LabelBy(StrEnum):
    """What carries the label."""

    SUBJECT = "subject"
    PLANE = "plane"


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM, in any arrangement.")],
    name: Annotated[str, typer.Option(help="Name of the cohort; default: the folder's.")] = "",
    labels: Annotated[Path | None, typer.Option(help="CSV with the columns subject (PatientID) and label.")] = None,
    preset: PresetName = "",
    table: Annotated[
        list[Path] | None, typer.Option(help="With --preset: a published table; may be given again.")
    ] = None,
    positive: Annotated[str | None, typer.Option(help="Class of interest; default: the last by alphabet.")] = None,
    rules: Rules = None,
    plane: Annotated[list[PlaneName] | None, typer.Option(help="Keep this plane; may be given again.")] = None,
    min_slices: Annotated[
        int | None, typer.Option(min=1, help="Reject series of fewer slices; default: as the rules say, 5.")
    ] = None,
    label_by: Annotated[LabelBy, typer.Option(help="Label subjects by the CSV, or slices by plane.")] = LabelBy.SUBJECT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be taken, send nothing.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on where labelled subjects have no images.")
    ] = False,
    flow: Annotated[
        Path | None, typer.Option(help="Write who was read, left out and taken, for `limner report --flow`.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the pseudonyms' key; default: in the user's folder."),
    ] = None,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Find the T2-weighted series of a folder, pseudonymise them and add them to a cohort.

    Says of every series why it is taken or not; `limner select --explain` says more. Only pixels, geometry and
    pseudonyms are sent. What is there already is not sent again, so an interrupted import is resumed by repeating it.
    With --preset, published tables are labelled by their default rules (`limner cohort labels`), and subjects of theirs
    without images are left out.

    \b
    Examples:
      limner cohort import mri/ --labels labels.csv --dry-run
      limner cohort import mri/ --name cervix --labels labels.csv --positive recurrent --plane transverse
      limner cohort import mri/ --name cervix --labels labels.csv --rules rules.yaml
      limner cohort import mri/ --name cervix --preset tcga-cesc-gdc --table clinical.tsv --table follow_up.tsv
      limner cohort import mri/ --name planes --label-by plane
    """  # noqa: D301  \b keeps the lines apart
    by_plane = label_by is LabelBy.PLANE
    _check_sources(labels, preset, table, by_plane, dry_run)
    if flow is not None and labels is None and not preset:
        raise typer.BadParameter("needs --labels or --preset", param_hint="--flow")
    labelling = label_tables(preset, table or []) if preset else None
    # An oblique slice is of no plane, so it cannot be labelled by it.
    planes = plane or (list(PlaneName) if by_plane else None)
    survey = read_folder(folder, _narrowed(rules_of(rules), planes, min_slices))
    if not as_json:
        _show_survey(survey)
        if labelling is not None:
            show_flow(labelling)
    source = labels if labelling is None else labelling.labels
    if dry_run and source is None and not by_plane:
        planned = None
    else:
        pseudonyms = load_or_create_key(key or default_key_file())
        missing = allow_missing or labelling is not None
        planned = label_slices(survey, source, positive=positive, allow_missing=missing, key=pseudonyms)
        if not as_json:
            _show_plan(planned)
    if flow is not None and planned is not None:
        before = _label_flow(labels) if labelling is None else Flow(**labelling.flow())
        _write_flow(flow, import_flow(planned, before))
    result = None if dry_run or planned is None else _upload(server, name or folder.resolve().name, planned.plan)
    if as_json:
        fields = survey_fields(survey) | _plan_fields(planned)
        fields |= {"labelling": labelling.flow()} if labelling else {}
        print_json(fields | ({"result": result.to_dict()} if result else {}))
    elif result:
        _show_result(result)
    if result and result.rejected:
        raise typer.Exit(FAILED)


def _check_sources(labels: Path | None, preset: str, table: list[Path] | None, by_plane: bool, dry_run: bool) -> None:
    """Refuse none and more than one source of labels."""
    given = [option for option, value in (("--labels", labels), ("--preset", preset)) if value]
    if given and by_plane:
        raise typer.BadParameter("not with --label-by plane", param_hint=given[0])
    if len(given) > 1:
        raise typer.BadParameter("not with --labels", param_hint="--preset")
    if bool(preset) != bool(table):
        raise typer.BadParameter("--preset and --table go together", param_hint="--table")
    if not given and not by_plane and not dry_run:
        raise typer.BadParameter("needed, or --preset, or --label-by plane", param_hint="--labels")


def _label_flow(labels: Path | None) -> Flow | None:
    """Return the flow that lies beside a table of labels, where there is one."""
    beside = None if labels is None else label_files(labels).flow
    return read_flow(beside) if beside is not None and beside.exists() else None


def _write_flow(path: Path, flow: Flow) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(flow.model_dump_json(indent=2) + "\n", encoding="utf-8")
    note(f"wrote {path}")


def _narrowed(rules: SelectionRules, planes: list[PlaneName] | None, min_slices: int | None) -> SelectionRules:
    """Return rules with what the command line says of planes and slices in the place of what they say."""
    changes: dict[str, frozenset[Plane] | Range] = {}
    if planes:
        changes["planes"] = frozenset(plane.value for plane in planes)
    if min_slices is not None:
        changes["slices"] = Range(min=min_slices)
    return rules.model_copy(update=changes)


def _upload(server: list[str], name: str, plan: CohortPlan) -> ImportResult:
    with connect(server) as client, progress_bar() as bar:
        task = bar.add_task("importing slices", total=len(plan.slices))
        return client.import_cohort(name, plan, progress=lambda done, _all: bar.update(task, completed=done))


def _verdict(decision: Decision) -> str:
    return "taken" if decision.accepted else "; ".join(decision.reasons)


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
    reasons = dict(planned.skipped)
    for reason, names in planned.grouped.items():
        if len(names) == 1:
            note(f"left out: {names[0]}: {reasons[names[0]]}")
        else:
            named = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            note(f"left out, {len(names)} times {reason}: {named}")
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
