"""Images named on the command line: files and folders of DICOM, every frame of them, with the subject from the header.

Ids are paths and subjects are PatientIDs; neither leaves this machine (`limner.images`).
"""

from collections.abc import Iterator
from pathlib import Path

from pydicom.misc import is_dicom

from limner.images import Image
from limner.imaging import read_header
from limner.imaging.errors import ImageError
from limner.imaging.headers import frame_count


def find_files(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files named, and those of the folders named that are DICOM; then the others of the folders."""
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for child in sorted(child for child in path.rglob("*") if child.is_file()):
            (files if is_dicom(child) else others).append(child)
    return files, others


def each_frame(files: list[Path]) -> Iterator[Image]:
    """Give every frame of every file as an image; a file that cannot be read as one, for its failure to be reported."""
    for path in files:
        try:
            header = read_header(path)
            frames = frame_count(header)
        except (ImageError, OSError):
            yield Image(path)
            continue
        subject = str(header.get("PatientID") or "")
        for frame in range(frames):
            yield Image(path, id=f"{path}#{frame}" if frames > 1 else str(path), subject=subject, frame=frame)
