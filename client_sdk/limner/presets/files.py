"""Writing a labelling: `labels.csv` for the import, the table of exclusions, and the flow for the report."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import to_json

from limner.imaging.files import replace_file
from limner.presets.outcomes import RECURRENT, Labelling


@dataclass(frozen=True)
class LabelFiles:
    """Where a labelling was written."""

    labels: Path
    excluded: Path
    flow: Path


def label_files(labels: Path) -> LabelFiles:
    """Return the files beside a table of labels: `labels.excluded.csv` and `labels.flow.json` for `labels.csv`."""
    return LabelFiles(labels, labels.with_suffix(".excluded.csv"), labels.with_suffix(".flow.json"))


def write_labels(labelling: Labelling, labels: Path) -> LabelFiles:
    """Write a labelling, each file whole or not at all.

    Parameters
    ----------
    labels
        Its folder is made; the other files lie beside it (`label_files`). Months are to the recurrence of a recurrent
        subject, and of follow-up without one for any other; empty where no table tells them.
    """
    files = label_files(labels)
    labels.parent.mkdir(parents=True, exist_ok=True)
    _write_table(
        files.labels,
        ("subject", "label", "recurrence_months", "follow_up_months"),
        (
            (one.subject, one.label, *((months, "") if one.label == RECURRENT else ("", months)))
            for one in labelling.labelled
            for months in (_number(one.months),)
        ),
    )
    _write_table(
        files.excluded,
        ("subject", "reason", "months"),
        ((one.subject, str(one.reason), _number(one.months)) for one in labelling.excluded),
    )
    with replace_file(files.flow) as temporary:
        temporary.write_bytes(to_json(labelling.flow(), indent=2) + b"\n")
    return files


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _number(months: float | None) -> str:
    return "" if months is None else f"{months:.1f}"
