"""The tables of a finished run: images, subjects, failures. Each is written whole or not at all."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from pydantic_core import to_json

from limner.errors import InternalError
from limner.imaging.files import flush, replace_file
from limner.roll_up import RollUp
from limner.scoring.journal import Journal
from limner.scoring.rows import (
    FAILURE_COLUMNS,
    Columns,
    Row,
    failure_cells,
    image_cells,
    image_columns,
    score_columns,
)
from limner.scoring.run import Run, write_run
from limner.scoring.vectors import Keeper
from limner.types import Scores, SubjectResult, TableFormat

Cells = Iterable[Sequence[object]]


def check_format(kind: TableFormat) -> None:
    """See that tables can be written so, before the work and not after it. ModuleNotFoundError without pyarrow."""
    if kind is TableFormat.PARQUET:
        import_module("limner.scoring.parquet")


def finish(folder: Path, run: Run, journal: Journal, kind: TableFormat) -> Scores:
    """Write the tables of a run, in the order of its source, and that it is finished.

    Raises
    ------
    InternalError
        Where images are missing.
    """
    if len(journal) != run.expected:
        raise InternalError(f"{folder} has {len(journal)} rows; expected {run.expected}")
    journal.flush()
    with Keeper(folder, run) as keeper:
        keeper.finish(len(journal))
    scores = _write_tables(folder, run, journal, kind)
    write_run(folder, run.model_copy(update={"finished": True}))
    return scores


def _write_tables(folder: Path, run: Run, journal: Journal, kind: TableFormat) -> Scores:
    model, labels = run.model, run.model.labels
    roll_up = RollUp()
    images = failed = far = 0

    def counted() -> Iterator[Row]:
        nonlocal images, failed, far
        for row in journal.rows():
            images += 1
            failed += bool(row.code)
            far += bool(row.far)
            roll_up.add(row.subject, None if row.code else row.logits, far=bool(row.far))
            yield row

    _write(folder, "images", kind, image_columns(labels), image_cells(counted(), labels))
    subjects = roll_up.results(labels, temperature=model.temperature, threshold=model.threshold)
    _write(folder, "subjects", kind, _subject_columns(labels), _subject_cells(subjects, labels))
    _write(folder, "failures", kind, FAILURE_COLUMNS, failure_cells(journal.rows() if failed else ()))
    flush(folder)
    return Scores(
        folder=folder,
        model=run.model.identity,
        labels=labels,
        images=images,
        failed=failed,
        far=far,
        subjects=len(roll_up),
        left_out=run.left_out,
    )


def _subject_columns(labels: Sequence[str]) -> Columns:
    counts = dict.fromkeys(("images", "failed", "far"), int)
    return {"subject": str, **counts, "label": str, **score_columns(labels)}


def _subject_cells(subjects: Iterable[SubjectResult], labels: Sequence[str]) -> Cells:
    nothing = [None] * len(labels)
    for one in subjects:
        scores = one.prediction
        figures = (*scores.probabilities, *scores.logits) if scores else (*nothing, *nothing)
        yield one.subject, one.images, one.failed, one.far, scores.label if scores else "", *figures


def _write(folder: Path, name: str, kind: TableFormat, columns: Columns, rows: Cells) -> None:
    with replace_file(folder / f"{name}.{kind}") as temporary:
        match kind:
            case TableFormat.PARQUET:
                from limner.scoring import parquet

                parquet.write(temporary, columns, rows)
            case TableFormat.CSV:
                _write_csv(temporary, columns, rows)
            case TableFormat.JSONL:
                _write_jsonl(temporary, columns, rows)
        flush(temporary)


def _write_csv(path: Path, columns: Columns, rows: Cells) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for cells in rows:
            writer.writerow(map(_text, cells))


def _text(cell: object) -> object:
    """Return a cell as CSV has it: floats in the digits that tell one float32 from the next, flags as 0 and 1."""
    match cell:
        case bool():
            return int(cell)
        case float():
            return f"{cell:.9g}"
        case _:
            return cell


def _write_jsonl(path: Path, columns: Columns, rows: Cells) -> None:
    with path.open("wb") as file:
        for cells in rows:
            file.write(to_json(dict(zip(columns, cells, strict=True)), inf_nan_mode="null") + b"\n")
