"""`limner predict`: score DICOM with a model."""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from limner.cli.common import (
    FAILED,
    NOTICE,
    SERVER,
    AsJson,
    ModelArgument,
    Server,
    connect,
    make_table,
    note,
    print_json,
    print_table,
    progress_bar,
)
from limner.cli.sources import each_frame, find_files
from limner.streams import ResultStream
from limner.types import ImageResult, ItemResult, Prediction

Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of them.")]
SendDicom = Annotated[bool, typer.Option("--send-dicom", help="Send whole files, identifying attributes included.")]


def predict(
    model: ModelArgument,
    paths: Paths,
    priority: Annotated[int, typer.Option(min=0, max=10, help="What waits with a higher one goes first.")] = 0,
    send_dicom: SendDicom = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the slices as CSV.")] = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Score slices, and roll them up by subject (PatientID, which stays here).

    \b
    Examples:
      limner predict cervix study/
      limner predict cervix:production study/*.dcm --csv > scores.csv
    """  # noqa: D301  \b keeps the lines apart
    files, others = find_files(paths)
    report_others(others)
    with connect(server) as client, progress_bar() as bar:
        stream = client.predict_stream(model, each_frame(files), priority=priority, send_dicom=send_dicom)
        results = list(bar.track(stream, total=len(files), description="scoring"))
    if as_json:
        print_json(_fields(stream, results))
    elif as_csv:
        _print_csv(stream.labels, results)
    else:
        _show(stream, results)
    finish(results)


def report_others(others: list[Path]) -> None:
    """Name what a folder holds beside DICOM."""
    for path in others:
        note(f"left out: {path}: not DICOM")


def finish(results: Iterable[ItemResult]) -> None:
    """Say what failed and what the results are for; exit with 1 where an image failed."""
    failed = [result for result in results if not result.ok]
    for result in failed:
        note(f"failed: {result.id}: {result.error}")
    note(NOTICE)
    if failed:
        raise typer.Exit(FAILED)


def _fields(stream: ResultStream[ImageResult], results: list[ImageResult]) -> dict[str, object]:
    return {
        "model": stream.model and stream.model.to_dict(),
        "labels": stream.labels,
        "results": [result.to_dict() for result in results],
        "subjects": [subject.to_dict() for subject in stream.subjects],
    }


def _cells(prediction: Prediction | None, labels: tuple[str, ...]) -> list[str]:
    if prediction is None:
        return ["failed", *("" for _ in labels)]
    return [prediction.label, *(f"{probability:.4f}" for probability in prediction.probabilities)]


def _show(stream: ResultStream[ImageResult], results: list[ImageResult]) -> None:
    slices = make_table(f"slices by {stream.model}", "image", "subject", "label", *stream.labels)
    for result in results:
        slices.add_row(Text(result.id), Text(result.subject), *map(Text, _cells(result.prediction, stream.labels)))
    print_table(slices)
    if stream.subjects:
        subjects = make_table("subjects", "subject", "slices", "failed", "label", *stream.labels)
        for subject in stream.subjects:
            cells = map(Text, _cells(subject.prediction, stream.labels))
            subjects.add_row(Text(subject.subject), str(subject.images), str(subject.failed), *cells)
        print_table(subjects)


def _print_csv(labels: tuple[str, ...], results: list[ImageResult]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "subject", "label", *(f"p_{label}" for label in labels), "error"])
    for result in results:
        scores = result.prediction
        row = [scores.label, *scores.probabilities] if scores else ["", *("" for _ in labels)]
        writer.writerow([result.id, result.subject, *row, str(result.error or "")])
