"""`limner select`: which series of a folder are taken, and why."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from limner.cli.common import AsJson, make_table, note, out, print_json, print_table
from limner.cli.rules import Rules, no_dicom, read_folder, rules_of, survey_fields
from limner.cohort_import import FolderSurvey
from limner.imaging.selection import Decision, Verdict


def select(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of DICOM, in any arrangement.", show_default=False)
    ] = None,
    rules: Rules = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what every rule says of every series.")] = False,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print the default rules, to start from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which series of a folder are taken, by headers alone: no pixel is read and nothing is sent.

    The rules are a YAML file: series descriptions, kind of image, echo and repetition time, slices, pixels, planes.
    `limner cohort import`, `limner predict`, `limner features` and `limner gateway run` take the same file.

    \b
    Examples:
      limner select mri/ --explain
      limner select --defaults > rules.yaml
      limner select mri/ --rules rules.yaml
    """  # noqa: D301  \b keeps the lines apart
    if defaults:
        # Imported here: most commands need no YAML.
        from limner.imaging.rule_files import default_rules_text

        print(default_rules_text(), end="")
        return
    if folder is None:
        raise typer.BadParameter("needed, or --defaults", param_hint="DIR")
    survey = read_folder(folder, rules_of(rules))
    if as_json:
        print_json(survey_fields(survey))
    else:
        for path, reason in survey.unreadable:
            note(f"left out: {path}: {reason}")
    if not survey.decisions:
        raise no_dicom(folder)
    if as_json:
        return
    if explain:
        for decision in survey.decisions:
            _explain(decision)
    else:
        _show(survey)
    taken = sum(decision.accepted for decision in survey.decisions)
    note(f"{taken} of {len(survey.decisions)} series taken" + ("" if explain else "; --explain says why"))


def _word(accepted: bool) -> Text:
    return Text("taken", "green") if accepted else Text("left out", "yellow")


def _show(survey: FolderSurvey) -> None:
    table = make_table("series", "subject", "description", "plane", "slices", "decision")
    for decision in survey.decisions:
        series = decision.series
        names = Text(series.patient_id), Text(series.description)
        table.add_row(*names, series.plane, str(len(series.slices)), _word(decision.accepted))
    print_table(table)


def _explain(decision: Decision) -> None:
    """Print the verdicts on one series, a line each."""
    series = decision.series
    slices = "1 slice" if len(series.slices) == 1 else f"{len(series.slices)} slices"
    place = f"  {series.plane}, {slices}: "
    out.print(
        Text.assemble((f"{series.patient_id}  {series.description}", "bold"), place, _word(decision.accepted)),
        *map(_line, decision.verdicts),
        sep="\n",
        end="\n\n",
    )


def _line(verdict: Verdict) -> Text:
    mark = Text("passed", "green") if verdict.passed else Text("failed", "bold yellow")
    return Text.assemble("  ", mark, f"  {verdict.rule:<18} {verdict.found}", (f"; expected {verdict.expected}", "dim"))
