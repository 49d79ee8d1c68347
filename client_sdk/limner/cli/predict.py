"""`limner predict`: score slices with a model."""

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
from limner.cli.rules import Rules, find_images
from limner.streams import ResultStream
from limner.types import ImageResult, ItemResult, Prediction

Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files of DICOM or NIfTI, or folders of them.")]
SendDicom = Annotated[bool, typer.Option("--send-dicom", help="Send whole files, de-identified, to be decoded there.")]


def predict(
    model: ModelArgument,
    paths: Paths,
    rules: Rules = None,
    priority: Annotated[int, typer.Option(min=0, max=10, help="What waits with a higher one goes first.")] = 0,
    send_dicom: SendDicom = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the slices as CSV.")] = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Score slices, and roll them up by subject (PatientID, which stays here).

    All DICOM of a folder is scored; with --rules only that of the series that pass them.

    \b
    Examples:
      limner predict cervix study/
      limner predict cervix study/ --rules rules.yaml
      limner predict cervix:production study/*.dcm --csv > scores.csv
    """  # noqa: D301  \b keeps the lines apart
    sources = find_images(paths, rules)
    sources.report()
    with connect(server) as client, progress_bar() as bar:
        stream = client.predict_stream(model, sources.images, priority=priority, send_dicom=send_dicom)
        results = list(bar.track(stream, total=sources.count, description="scoring"))
    if as_json:
        print_json(_fields(stream, results))
    elif as_csv:
        _print_csv(stream.labels, results)
    else:
        _show(stream, results)
    finish(results)


def finish(results: Iterable[ItemResult]) -> None:
    """Say what failed, what lies far from home and what the results are for; exit with 1 where an image failed."""
    results = list(results)
    failed = [result for result in results if not result.ok]
    for result in failed:
        note(f"failed: {result.id}: {result.error}")
    distances = [result.prediction.distance for result in results if result.prediction and result.prediction.distance]
    if far := sum(distance.far for distance in distances):
        note(f"far from what the model was trained on: {far} of {len(distances)} slices; do not rely on their scores")
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


def _distance_cell(prediction: Prediction | None) -> str:
    """Return the percentile of the distance among held-out training slices, and whether that is far."""
    if prediction is None or prediction.distance is None:
        return ""
    return "> 99 far" if prediction.distance.far else f"{prediction.distance.percentile:.0f}"


def _cells(prediction: Prediction | None, labels: tuple[str, ...]) -> list[str]:
    if prediction is None:
        return ["failed", *("" for _ in labels)]
    return [prediction.label, *(f"{probability:.4f}" for probability in prediction.probabilities)]


def _show(stream: ResultStream[ImageResult], results: list[ImageResult]) -> None:
    slices = make_table(f"slices by {stream.model}", "image", "subject", "label", *stream.labels, "distance (pctl.)")
    for result in results:
        scores = _cells(result.prediction, stream.labels)
        slices.add_row(*map(Text, (result.id, result.subject, *scores)), _distance_cell(result.prediction))
    print_table(slices)
    if stream.subjects:
        subjects = make_table("subjects", "subject", "slices", "failed", "far", "label", *stream.labels)
        for subject in stream.subjects:
            cells = map(Text, _cells(subject.prediction, stream.labels))
            counts = map(str, (subject.images, subject.failed, subject.far))
            subjects.add_row(Text(subject.subject), *counts, *cells)
        print_table(subjects)


def _print_csv(labels: tuple[str, ...], results: list[ImageResult]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    scored = [f"p_{label}" for label in labels]
    writer.writerow(["image", "subject", "label", *scored, "distance", "distance_percentile", "far", "error"])
    for result in results:
        scores = result.prediction
        row = [scores.label, *scores.probabilities] if scores else ["", *("" for _ in labels)]
        away = scores.distance if scores else None
        distance = [away.value, away.percentile, int(away.far)] if away else ["", "", ""]
        writer.writerow([result.id, result.subject, *row, *distance, str(result.error or "")])
