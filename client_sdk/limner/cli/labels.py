"""`limner cohort labels`: recurrence labels from clinical tables as they are published, and why who has none."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from limner.cli.common import AsJson, make_table, note, print_json, print_table
from limner.presets import PRESETS, Labelling, LabelRules, Preset, label_tables, write_labels

NAMED_SUBJECTS = 10
PresetName = Annotated[str, typer.Option("--preset", metavar="NAME", help="Whose tables they are; see --list.")]


def labels(
    tables: Annotated[
        list[Path] | None, typer.Argument(metavar="TABLE...", help="The tables of one download, CSV or TSV.")
    ] = None,
    preset: PresetName = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the labels; the rest goes beside.")
    ] = None,
    within_months: Annotated[
        float | None, typer.Option(help="A recurrence counts up to this time; default: any time.")
    ] = None,
    min_follow_up_months: Annotated[
        float | None,
        typer.Option(
            help="Non-recurrent are subjects followed for this long; default: 24, or --within-months where more."
        ),
    ] = None,
    only: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label these subjects only, one a line; default: all.")
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="List the presets and their rules, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label subjects as recurrent or non-recurrent by published clinical tables.

    Whoever's recurrence is unknown, or who was followed too shortly, is excluded by name. Writes FILE (subject, label),
    FILE with .excluded.csv (subject, reason) and FILE with .flow.json (counts and rules, for `limner report --flow`).

    \b
    Examples:
      limner cohort labels --list
      limner cohort labels --preset tcga-cesc-gdc clinical.tsv follow_up.tsv --out labels.csv
      limner cohort labels --preset tcga-cesc-cbioportal data_clinical_patient.txt --within-months 36 --out labels.csv
    """  # noqa: D301  \b keeps the lines apart
    if list_presets:
        _list(as_json)
        return
    if not preset:
        raise typer.BadParameter("needed, one of " + ", ".join(one.name for one in PRESETS), param_hint="--preset")
    if out is None:
        raise typer.BadParameter("needed, the file to write", param_hint="--out")
    rules = LabelRules(within_months, min_follow_up_months)
    labelling = label_tables(preset, tables or [], rules, None if only is None else _subjects(only))
    files = write_labels(labelling, out)
    if as_json:
        print_json(labelling.flow())
        return
    show_flow(labelling)
    note(f"wrote {files.labels}, {files.excluded} and {files.flow}")


def _subjects(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def show_flow(labelling: Labelling) -> None:
    """Print how many subjects were read, left out and labelled, and who was left out."""
    flow = labelling.flow()
    table = make_table(f"{labelling.preset}: {', '.join(labelling.evidence.tables)}", "", "subjects", "who")
    table.add_row("read", str(flow["read"]), "")
    for reason, subjects in labelling.reasons.items():
        table.add_row(f"excluded: {reason}", str(len(subjects)), Text(_named(subjects)))
    for label, count in labelling.counts.items():
        table.add_row(label, str(count), "")
    print_table(table)
    for (column, value), rows in sorted(labelling.evidence.unread.items()):
        note(f"not understood, taken as unknown: {column} is {value!r} in {rows} rows")


def _named(subjects: list[str]) -> str:
    return ", ".join(subjects[:NAMED_SUBJECTS]) + (", ..." if len(subjects) > NAMED_SUBJECTS else "")


def _list(as_json: bool) -> None:
    if as_json:
        print_json({"presets": [_fields(preset) for preset in PRESETS]})
        return
    for preset in PRESETS:
        print(f"{preset.name}: {preset.title}\n  files: {preset.files}")
        for rule in preset.rules:
            print(f"  {rule.name}: {rule.sentence}")
        print()
    print("all presets, with the default months:")
    for rule in LabelRules().sentences():
        print(f"  {rule.name}: {rule.sentence}")


def _fields(preset: Preset) -> dict[str, Any]:
    rules = [{"name": rule.name, "sentence": rule.sentence} for rule in (*preset.rules, *LabelRules().sentences())]
    return {"name": preset.name, "title": preset.title, "files": preset.files, "rules": rules}
