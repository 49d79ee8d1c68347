"""What a preset is, and reading tables by one."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.presets.outcomes import Evidence, Record, Rule
from limner.presets.tables import Row, Table, bad_table, read_table

BARCODE = re.compile(r"TCGA-\w{2}-\w{4}(?=-|$)", re.IGNORECASE)
NAMED_COLUMNS = 8


@dataclass(frozen=True)
class Form:
    """One kind of table of a preset.

    Attributes
    ----------
    name
        As the file is called where it is downloaded.
    subject
        Columns that may hold the subject; the first that is there does.
    needs
        Columns of which each must be there, as alternatives separated by a space.
    read
        What a row of the subject says.
    """

    name: str
    subject: tuple[str, ...]
    needs: tuple[str, ...]
    read: Callable[[str, Row], Iterable[Record]]

    def fits(self, table: Table) -> bool:
        """Whether a table has the columns of this form."""
        columns = set(table.columns)
        return bool(columns & set(self.subject)) and all(columns & set(need.split()) for need in self.needs)


@dataclass(frozen=True)
class Preset:
    """How the tables of one publisher become labels.

    Attributes
    ----------
    name
        For `--preset`.
    title
        Collection and publisher.
    files
        Which files to give, as they are called where they are downloaded.
    rules
        What a row means; the rules that all presets share are in `outcomes.py`.
    forms
        The kinds of table, the one with more columns first where two would fit.
    """

    name: str
    title: str
    files: str
    rules: tuple[Rule, ...]
    forms: tuple[Form, ...]


def subject_of(text: str) -> str:
    """Return a subject as it is labelled: of a TCGA barcode, also of a sample or a form, the patient's, in capitals."""
    barcode = BARCODE.match(text)
    return barcode.group().upper() if barcode else text


def read_records(preset: Preset, tables: Sequence[Path]) -> Evidence:
    """Read tables by a preset.

    Raises
    ------
    InvalidInputError
        Where a table cannot be read, is none of the preset's, or has a row without subject.
    """
    if not tables:
        raise bad_table("no table was given", preset.files)
    records: list[Record] = []
    unread: Counter[tuple[str, str]] = Counter()
    rows = 0
    for path in tables:
        table = read_table(path)
        form = _form(preset, table)
        for row in table.rows:
            subject = row.text(*form.subject)
            if not subject:
                raise bad_table(f"{row.place}: {' or '.join(form.subject)} is empty", "the subject")
            records += form.read(subject_of(subject), row)
        rows += len(table.rows)
        unread += table.unread
    return Evidence(tuple(path.name for path in tables), rows, tuple(records), unread)


def _form(preset: Preset, table: Table) -> Form:
    for form in preset.forms:
        if form.fits(table):
            return form
    shown = ", ".join(table.columns[:NAMED_COLUMNS]) + (", ..." if len(table.columns) > NAMED_COLUMNS else "")
    expected = "; or ".join(
        f"{form.name} with {' or '.join(form.subject)}"
        + "".join(f" and {need.replace(' ', ' or ')}" for need in form.needs)
        for form in preset.forms
    )
    raise bad_table(f"columns of {table.path} are {shown}", f"those of preset {preset.name}: {expected}")
