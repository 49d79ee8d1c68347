"""What the option `--rules` does: the series of a folder, chosen by a file of rules, as a survey or as images."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.cli.common import note, progress_bar
from limner.cohort_import import FolderSurvey, survey_folder
from limner.errors import LimnerError, invalid_input
from limner.image_files import chosen_frames, each_frame, find_files
from limner.images import Image
from limner.imaging.errors import ImageError
from limner.imaging.headers import NOT_DICOM
from limner.imaging.rules import SelectionRules

Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="YAML of the series to take (`limner select --defaults`)."),
]


@dataclass(frozen=True)
class Sources:
    """The images of a command.

    Attributes
    ----------
    images
        Read as they are asked for.
    count
        How many there are; of files that may have several frames, how many files.
    left_out
        What the folders hold beside them, and why it is none of them.
    """

    images: Iterable[Image]
    count: int
    left_out: list[tuple[str, str]]

    def report(self) -> None:
        """Name what is left out."""
        for name, reason in self.left_out:
            note(f"left out: {name}: {reason}")


def rules_of(path: Path | None) -> SelectionRules:
    """Return the rules of a file, or the default ones."""
    # Imported here: most commands need no YAML.
    from limner.imaging.rule_files import default_rules, read_rules

    return default_rules() if path is None else read_rules(path)


def read_folder(folder: Path, rules: SelectionRules) -> FolderSurvey:
    """Read the headers of a folder and judge its series, with a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task("reading headers", total=sum(len(names) for _, _, names in os.walk(folder)))
        return survey_folder(folder, rules, progress=lambda: bar.advance(task))


def no_dicom(folder: Path) -> LimnerError:
    """Return the error of a folder that holds no image."""
    return invalid_input(ImageError("folder", folder, "a folder with DICOM images, of which none was found"))


def survey_fields(survey: FolderSurvey) -> dict[str, Any]:
    """Return what was found in a folder as the fields of JSON."""
    return {
        "series": [
            {
                "subject": decision.series.patient_id,
                "series": (decision.series.series_uid, *decision.series.other_series_uids),
                "description": decision.series.description,
                "plane": decision.series.plane,
                "slices": len(decision.series.slices),
                "taken": decision.accepted,
                "reasons": decision.reasons,
                "rules": [vars(verdict) for verdict in decision.verdicts],
            }
            for decision in survey.decisions
        ],
        "unreadable": [{"name": str(path), "reason": reason} for path, reason in survey.unreadable],
    }


def find_images(paths: list[Path], rules: Path | None) -> Sources:
    """Return every frame of the files and folders named; of the folders, those of the series that the rules take.

    Parameters
    ----------
    rules
        File of the rules; None: all DICOM is taken.
    """
    if rules is None:
        files, others = find_files(paths)
        return Sources(each_frame(files), len(files), [(str(path), NOT_DICOM) for path in others])
    wanted = rules_of(rules)
    parts: list[Iterable[Image]] = []
    left_out: list[tuple[str, str]] = []
    count = 0
    for path in paths:
        chosen = list(_chosen(read_folder(path, wanted), left_out)) if path.is_dir() else None
        parts.append(each_frame([path]) if chosen is None else chosen)
        count += 1 if chosen is None else len(chosen)
    return Sources(chain.from_iterable(parts), count, left_out)


def _chosen(survey: FolderSurvey, left_out: list[tuple[str, str]]) -> Iterator[Image]:
    left_out += [(str(path), reason) for path, reason in survey.unreadable]
    for decision in survey.decisions:
        series = decision.series
        if not decision.accepted:
            name = f"series {series.description!r} of {series.patient_id} ({series.plane}, {len(series.slices)} slices)"
            left_out.append((name, "; ".join(decision.reasons)))
    yield from chosen_frames(survey)
