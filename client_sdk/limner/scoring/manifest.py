"""Manifests: tables that list what is to be scored, an image a row, as CSV or Parquet.

The columns, of which only `path` must be there, and others are ignored:

- `path`: a file of DICOM or NIfTI; a relative one starts at the manifest's folder.
- `frame`: of a multi-frame file or volume, from 0. Without one a volume is scored slice by slice, and a DICOM file
  must have a single frame.
- `subject`: images that share one are rolled up.
- `id`: the image's name in the results, unique. Default: path and frame.
- `label`: known beforehand; it is handed through to the results.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from limner.errors import InvalidInputError, wrong_input

SUFFIXES = (".csv", ".parquet")

# pandas makes floats of a column of integers in which some are missing.
_FRAME = re.compile(r"([0-9]{1,9})(?:\.0*)?")


class Row(NamedTuple):
    """A row of a manifest, as it is written there; what is missing is empty, or None."""

    path: str
    frame: int | None = None
    subject: str = ""
    id: str = ""
    label: str = ""


def read_manifest(path: Path) -> Iterator[Row]:
    """Give the rows of a manifest.

    Raises
    ------
    InvalidInputError
        Naming the line and the column that is wrong; at the first row, where the file cannot be read.
    ModuleNotFoundError
        Where it is Parquet and pyarrow is not installed.
    """
    parquet = path.suffix.lower() == ".parquet"
    expected = "a Parquet file" if parquet else "a CSV file in UTF-8"
    try:
        for place, cells in _parquet_cells(path) if parquet else _csv_cells(path):
            yield _row(f"{place} of {path}", cells)
    except (InvalidInputError, ModuleNotFoundError):
        raise
    # UnicodeDecodeError and pyarrow's own are ValueErrors.
    except (OSError, ValueError, csv.Error) as error:
        raise wrong_input("manifest", f"{path} cannot be read: {error}", expected) from error


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV; a path in another encoding than UTF-8 is kept as it is."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)  # with its own line ends: with others, a carriage return in a name is not quoted
        writer.writerow(Row._fields)
        writer.writerows(rows)


def _csv_cells(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # A path may be in another encoding than UTF-8; other columns must not be, see `_row`.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.reader(file, strict=True)
        columns = _checked(path, next(lines, []))
        for cells in lines:
            if not cells:
                continue
            place = f"line {lines.line_num}"
            if len(cells) != len(columns):
                raise wrong_input(
                    "manifest", f"{place} of {path} has {len(cells)} fields", f"{len(columns)}, as the first"
                )
            yield place, dict(zip(columns, cells, strict=True))


def _parquet_cells(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    from limner.scoring import parquet

    columns = [name for name in _checked(path, parquet.column_names(path)) if name in Row._fields]
    for number, cells in enumerate(parquet.read(path, columns), start=1):
        yield f"row {number}", dict(zip(columns, map(_text, cells), strict=True))


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell)  # NaN is not itself


def _checked(path: Path, columns: list[str]) -> list[str]:
    """Return the names of the columns, stripped, where they can be used."""
    columns = [name.strip() for name in columns]
    if "path" not in columns:
        raise wrong_input(
            "manifest", f"columns of {path} are {', '.join(columns) or 'none'}", "path, and perhaps others"
        )
    for name in Row._fields:
        if columns.count(name) > 1:
            raise wrong_input("manifest", f"column {name} stands twice in {path}", "one column of each name")
    return columns


def _row(place: str, cells: dict[str, str]) -> Row:
    name = cells["path"]
    if not name.strip() or "\0" in name:
        raise wrong_input("path", f"path in {place} is {name!r}", "a file of DICOM or NIfTI")
    frame = cells.get("frame", "").strip()
    number = _FRAME.fullmatch(frame)
    if frame and number is None:
        raise wrong_input("frame", f"frame in {place} is {frame!r}", "a whole number from 0")
    texts = {column: cells.get(column, "").strip() for column in ("subject", "id", "label")}
    for column, text in texts.items():
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise wrong_input(column, f"{column} in {place} is {text!r}", "text in UTF-8")
    return Row(name, int(number[1]) if number else None, **texts)
