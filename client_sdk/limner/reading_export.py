"""A closed reading as files: tables of verdicts and images, pictures, and DICOM with a report for each reader.

Not for what stands in a DICOM object: that is `limner.imaging` and `limner.gateway.reading_report`.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from limner.imaging import write_png
from limner.imaging.files import file_name, replace_file
from limner.types import ReadingExport, ReadingItem, RecordedVerdict

NOTICE = "research use only, not for diagnostic use"
WINDOW = (0.0, 65535.0)


def write_export(
    content: ReadingExport, folder: Path, *, images: bool = False, dicom: bool = False
) -> tuple[Path, ...]:
    """Write a reading's export.

    Parameters
    ----------
    content
        With its images, where they are to be written.
    folder
        Made when missing. It gets `verdicts.csv`, a row for each verdict, `items.csv`, a row for each image, and
        `reading.json`, what was asked.
    images
        Write `images/NNN.png` too, as readers saw them.
    dicom
        Write `images/NNN.dcm`, Secondary Capture, and `report-READER.dcm`, a structured report that refers to them;
        needs the extra `limner[gateway]`.

    Returns
    -------
    The files.

    Raises
    ------
    ModuleNotFoundError
        `dicom` without the extra; nothing is written.
    OSError
        A file cannot be written; those before it are there, each of them whole.
    """
    if dicom:
        from limner.gateway import reading_report
    folder.mkdir(parents=True, exist_ok=True)
    verdicts, items, facts = (folder / name for name in ("verdicts.csv", "items.csv", "reading.json"))
    _write_table(verdicts, [_verdict_row(content, one) for one in content.verdicts], _verdict_columns(content))
    _write_table(
        items, [_item_row(content, item) for item in content.items], list(_item_row(content, content.items[0]))
    )
    with replace_file(facts) as temporary:
        temporary.write_bytes(to_json({"notice": NOTICE, **content.reading.to_dict()}, indent=2))
    written = [verdicts, items, facts]
    if images or dicom:
        (folder / "images").mkdir(exist_ok=True)
    if images:
        for item in content.items:
            path = folder / "images" / f"{item.number:03}.png"
            write_png(path, pixels(content, item), WINDOW, caption=f"{describe(item)}\nNOT FOR DIAGNOSTIC USE")
            written.append(path)
    if dicom:
        written += reading_report.write(content, folder)
    return tuple(written)


def pixels(content: ReadingExport, item: ReadingItem) -> NDArray[np.uint16]:
    """Return an image `(size, size)` as readers saw it, 0 to 65535."""
    size = content.reading.grid.size
    return np.frombuffer(item.pixels, "<u2").reshape(size, size)


def describe(item: ReadingItem) -> str:
    """Say what an image is, in a few words: "simulated, recurrent"."""
    return f"{item.kind.value.replace('_', ' ')}, {item.label}"


def report_name(reader: str) -> str:
    """Name the file of a reader's report."""
    return f"report-{file_name(reader)}.dcm"


def _verdict_columns(content: ReadingExport) -> list[str]:
    shared = ["sequence", "reader", "received", "item", "position", "counts", "likelihood", "step", "realism"]
    features = [f"feature: {entry.name}" for entry in content.reading.lexicon]
    known = ["kind", "label", "subject", "model_probability"]
    return [*shared, "confidence", *features, "comment", "seconds", *known, "verdict_id", "case"]


def _verdict_row(content: ReadingExport, one: RecordedVerdict) -> dict[str, object]:
    item, said = content.items[one.item], one.verdict
    return {
        "sequence": one.sequence,
        "reader": one.reader,
        "received": one.received.isoformat(),
        "item": one.item,
        "position": one.position,
        "counts": int(one.counts),
        "likelihood": said.likelihood,
        "step": one.step,
        "realism": said.realism,
        "confidence": said.confidence,
        **{f"feature: {entry.name}": said.features.get(entry.name, "") for entry in content.reading.lexicon},
        "comment": said.comment,
        "seconds": said.seconds,
        "kind": item.kind.value,
        "label": item.label,
        "subject": item.subject,
        "model_probability": item.probabilities[content.reading.labels.index(content.reading.label)],
        "verdict_id": said.id,
        "case": said.case,
    }


def _item_row(content: ReadingExport, item: ReadingItem) -> dict[str, object]:
    chances = zip(content.reading.labels, item.probabilities, strict=True)
    return {
        "item": item.number,
        "kind": item.kind.value,
        "label": item.label,
        "subject": item.subject,
        "instance": item.instance,
        "simulation": "" if item.simulation is None else item.simulation,
        "simulation_verdict": item.simulation_verdict.value if item.simulation_verdict else "",
        "out_of_fold": int(item.out_of_fold),
        **{f"probability: {label}": chance for label, chance in chances},
    }


def _write_table(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: object) -> object:
    """Keep a spreadsheet from taking a reader's text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
