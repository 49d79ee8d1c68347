"""Images in files: every frame of DICOM, with its subject from the header, and every slice of NIfTI volumes.

Ids are paths and subjects are PatientIDs; neither leaves this machine (`limner.images`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.misc import is_dicom

from limner.cohort_import import FolderSurvey
from limner.images import Image
from limner.imaging import read_header
from limner.imaging.errors import ImageError
from limner.imaging.headers import frame_count
from limner.imaging.nifti import is_nifti, slice_count


def find_files(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files named, and those of the folders named that hold images; then the others of the folders."""
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for child in sorted(child for child in path.rglob("*") if child.is_file()):
            (files if holds_images(child) else others).append(child)
    return files, others


def holds_images(path: Path) -> bool:
    """Whether a file is DICOM by its content, or NIfTI by its name."""
    return is_nifti(path) or is_dicom(path)


def each_frame(files: Iterable[Path]) -> Iterator[Image]:
    """Give every frame of every file as an image; a file that cannot be read as one, for its failure to be reported."""
    for path in files:
        try:
            subject, frames = _frames(path)
        except (ImageError, OSError):
            yield Image(path)
            continue
        for frame in range(frames):
            yield Image(path, id=f"{path}#{frame}" if frames > 1 else str(path), subject=subject, frame=frame)


def chosen_frames(survey: FolderSurvey) -> Iterator[Image]:
    """Give every slice of the series of a folder that were taken."""
    frames = Counter(one.path for decision in survey.decisions for one in decision.series.slices)
    for series in (decision.series for decision in survey.decisions if decision.accepted):
        for one in series.slices:
            name = f"{one.path}#{one.frame}" if frames[one.path] > 1 else str(one.path)
            yield Image(one.path, id=name, subject=series.patient_id, frame=one.frame)


def _frames(path: Path) -> tuple[str, int]:
    """Return the subject of a file, empty where it names none, and the number of its frames."""
    if is_nifti(path):
        return "", slice_count(path)
    header = read_header(path)
    return str(header.get("PatientID") or ""), frame_count(header)
