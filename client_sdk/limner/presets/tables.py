"""Reading a clinical table as it was downloaded: CSV or TSV, with whatever stands around its header.

Columns are found by their names in lower case with every other character as an underscore, so that `DFS_STATUS`,
`follow_ups.days_to_follow_up` and `Local Recurrence (Y/N)` are `dfs_status`, `follow_ups_days_to_follow_up` and
`local_recurrence_y_n`. What a row says of recurrence is a preset's business.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TypeVar

from limner.errors import InvalidInputError

T = TypeVar("T")

# Ways to say nothing: GDC's '--, the [Not Available] family of the BCR's biotabs, cBioPortal's NA and empty cells.
NOTHING = frozenset(
    {
        "",
        "-",
        "--",
        "'--",
        "na",
        "n/a",
        "nan",
        "not reported",
        "unknown",
        "not allowed to collect",
        "[not available]",
        "[not applicable]",
        "[not evaluated]",
        "[unknown]",
        "[discrepancy]",
        "[completed]",
    }
)
DAYS_PER_MONTH = 365.25 / 12
DAYS_PER_WEEK = 7.0
# First bytes of what is offered in place of a table, and what to do about it.
OTHER_FILES = {
    b"PK\x03\x04": "a spreadsheet or archive; expected CSV: open it and save the sheet as 'CSV UTF-8', or unpack it",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet; expected CSV: open it and save the sheet as 'CSV UTF-8'",
    b"\x1f\x8b": "compressed; expected the table in it: unpack it (tar -xzf)",
    b"<?xml": "XML; expected a table: download the same data as BCR Biotab, or as TSV",
}


@dataclass(frozen=True)
class Row:
    """One row of a table, with what its cells mean.

    Attributes
    ----------
    place
        Table and line, for a message.
    cells
        By the column's name as described above. An empty text stands for every way to say nothing.
    unread
        Counts the cells whose value is in no vocabulary, by column and value; shared by the rows of a table.
    """

    place: str
    cells: Mapping[str, str]
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)

    def text(self, *columns: str) -> str:
        """Return the first cell of these columns that says something, or an empty text."""
        return next((cell for column in columns if (cell := self.cells.get(column, ""))), "")

    def choice(self, vocabulary: Mapping[str, T], *columns: str) -> T | None:
        """Return the meaning of the first of these columns that says something.

        Parameters
        ----------
        vocabulary
            Meaning of each value, in lower case.

        Returns
        -------
        T or None
            None where the cell says nothing, or something else: that is counted in `unread`.
        """
        for column in columns:
            cell = self.cells.get(column, "")
            if cell:
                if cell.lower() not in vocabulary:
                    self.unread[column, cell] += 1
                return vocabulary.get(cell.lower())
        return None

    def months(self, unit_days: float, *columns: str) -> float | None:
        """Return the first time in these columns, in months since their origin, rounded to one decimal.

        Parameters
        ----------
        unit_days
            Length of the column's unit in days.

        Returns
        -------
        float or None
            None where the cells say nothing, or a time before the origin: that is counted in `unread`.

        Raises
        ------
        InvalidInputError
            Where a cell holds no number.
        """
        for column in columns:
            cell = self.cells.get(column, "")
            if not cell:
                continue
            try:
                value = float(cell)
            except ValueError:
                value = float("nan")
            if not isfinite(value):
                raise bad_table(f"{self.place}: {column} is {cell!r}", "a number, or nothing")
            if value < 0:
                self.unread[column, cell] += 1
                continue
            return round(value * unit_days / DAYS_PER_MONTH, 1)
        return None

    def days(self, *columns: str) -> float | None:
        """Return the first time in these columns of days, in months."""
        return self.months(1.0, *columns)


@dataclass(frozen=True)
class Table:
    """A table that was read: its columns as described above, and its rows."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unread: Counter[tuple[str, str]]


def bad_table(found: str, expected: str) -> InvalidInputError:
    """Return the error of a table that cannot be used."""
    return InvalidInputError(f"{found}; expected {expected}", field="table", expected=expected)


def read_table(path: Path) -> Table:
    """Read a table of comma, semicolon or tab separated values.

    Lines before the header that begin with `#` (cBioPortal) and repetitions of the header below it (BCR biotabs: other
    names, then CDE numbers) are no rows.

    Raises
    ------
    InvalidInputError
        Where the file cannot be read, is a spreadsheet, has no rows, or a row has more cells than the header.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(8)
        for magic, meaning in OTHER_FILES.items():
            if begin.startswith(magic):
                raise InvalidInputError(f"{path} is {meaning}", field="table", expected="CSV or TSV")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = enumerate(file, start=1)
            first, header = next(((n, line) for n, line in lines if line.strip() and not line.startswith("#")), (0, ""))
            text = chain([header], (line for _, line in lines))
            # Published TSV is not quoted: a lone quotation mark in a remark would swallow the lines after it.
            reader = (
                csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
                if "\t" in header
                else csv.reader(text, delimiter=max(",;", key=header.count))
            )
            names = [column_name(name) for name in next(reader, [])]
            numbered = ((first - 1 + reader.line_num, cells) for cells in reader)
            unread: Counter[tuple[str, str]] = Counter()
            rows = tuple(_rows(path, names, numbered, unread))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_table(f"{path} cannot be read: {error}", "a CSV or TSV file in UTF-8") from error
    if not rows:
        raise bad_table(f"{path} has no rows", "a header and one row or more for each subject")
    return Table(path, tuple(dict.fromkeys(names)), rows, unread)


def column_name(header: str) -> str:
    """Return a column's name as presets know it."""
    return re.sub(r"[^a-z0-9]+", "_", header.lower()).strip("_")


def _rows(
    path: Path, names: list[str], numbered: Iterator[tuple[int, list[str]]], unread: Counter[tuple[str, str]]
) -> Iterator[Row]:
    for line, cells in numbered:
        values = [cell.strip().strip('"') for cell in cells]
        if not any(values) or _repeats_header(values):
            continue
        if any(values[len(names) :]):
            raise bad_table(f"{path}, line {line} has {len(values)} cells", f"at most the {len(names)} of the header")
        known: dict[str, str] = {}
        for name, value in zip(names, values, strict=False):
            # A column that stands twice (biotabs) holds its value in either.
            known[name] = known.get(name) or ("" if value.lower() in NOTHING else value)
        yield Row(f"{path}, line {line}", known, unread)


def _repeats_header(values: list[str]) -> bool:
    return "bcr_patient_barcode" in values or any(value.startswith("CDE_ID:") for value in values)
