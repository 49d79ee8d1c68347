"""What is to be scored, one image after another: what folders, globs, manifests and volumes name, or the caller's own.

What is named by paths is written down as a manifest before the run begins, so that a resumed run scores the same images
under the same names, whatever its source has become; `fingerprint` tells whether that is something else now.
"""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from glob import has_magic, iglob
from hashlib import blake2b, sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from limner.cohort_import import survey_folder
from limner.errors import wrong_input
from limner.image_files import chosen_frames, each_frame, holds_images
from limner.images import Image, each_image
from limner.imaging.files import each_file
from limner.imaging.headers import NOT_DICOM
from limner.imaging.nifti import is_nifti
from limner.imaging.rules import SelectionRules
from limner.scoring.manifest import SUFFIXES, Row, read_manifest
from limner.scoring.run import ROWS

if TYPE_CHECKING:
    from limner.images import Images

    Source: TypeAlias = "str | Path | Sequence[str | Path] | Images"

# Control characters, separators of lines, and what Python makes of bytes that are no UTF-8.
_UNFIT = re.compile(r"[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")

LeftOut = Callable[[Path, str], None]
"""Told of a file that is not scored, and why."""


class Item(NamedTuple):
    """An image of a source: its position there, from 0, and its label, where that is known beforehand."""

    position: int
    image: Image
    label: str = ""

    @property
    def path(self) -> str:
        """Its file, empty where it comes from none."""
        return clean(str(self.image.content)) if isinstance(self.image.content, str | Path) else ""


def clean(text: str) -> str:
    """Return text that any table can hold: line ends and bytes of a file name that are no UTF-8 become escapes."""
    return _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def named(source: "Source") -> tuple[str, ...] | None:
    """Return the paths that a source names; None where it is the images themselves."""
    if isinstance(source, str | Path):
        source = [source]
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | Path) for one in source):
        return tuple(str(Path(one)) for one in source)
    return None


def given(images: "Images") -> Iterator[Item]:
    """Give the caller's own images."""
    for position, image in enumerate(each_image(images)):
        default = str(image.content) if isinstance(image.content, str | Path) else str(position)
        name, subject = clean(image.id.strip() or default), clean(image.subject.strip())
        yield Item(position, replace(image, id=name, subject=subject))


def listed(manifest: Path) -> Iterator[Item]:
    """Give the images of a manifest that `expanded` rows were written to."""
    for position, row in enumerate(read_manifest(manifest)):
        yield Item(position, Image(row.path, row.id, row.subject, row.frame), row.label)


def expanded(
    sources: Sequence[str], rules: SelectionRules | None, left_out: LeftOut, advance: Callable[[], None]
) -> Iterator[Row]:
    """Give a row for each image that the sources name, with its absolute path and an id.

    Parameters
    ----------
    sources
        Folders, files of DICOM and NIfTI, manifests, patterns.
    rules
        Which series of a folder are taken; None: every slice.
    advance
        Called after each file of a folder.

    Raises
    ------
    InvalidInputError
        Where a source is not there, or is a manifest that cannot be used.
    """
    for place in _places(sources):
        if place.is_dir():
            found = _series(place, rules, left_out, advance) if rules else _every_slice(place, left_out, advance)
        elif place.suffix.lower() in SUFFIXES:
            found = _manifest(place)
        else:
            found = _rows(each_frame([place]))
        for row in found:
            path = os.path.abspath(row.path)  # noqa: PTH100  pathlib has none that keeps links
            subject, name, label = (clean(text.strip()) for text in (row.subject, row.id, row.label))
            yield Row(path, row.frame, subject, name, label)


def _places(sources: Iterable[str]) -> Iterator[Path]:
    """Give the files and folders that are named, in the order of their names where by a pattern."""
    for source in sources:
        if Path(source).exists():
            yield Path(source)
            continue
        matches = map(Path, sorted(iglob(source, recursive=True))) if has_magic(source) else iter(())  # noqa: PTH207  pathlib has no absolute patterns
        # "**" gives the folders and also what is in them.
        places = [place for place in matches if "**" not in source or not place.is_dir()]
        if not places:
            raise wrong_input("source", f"source is {source!r}", "an existing folder, file or pattern")
        yield from places


def _rows(images: Iterable[Image]) -> Iterator[Row]:
    for image in images:
        path = str(image.content)
        yield Row(path, image.frame, image.subject, image.id or path)


def _every_slice(folder: Path, left_out: LeftOut, advance: Callable[[], None]) -> Iterator[Row]:
    unreadable: list[tuple[Path, str]] = []
    for path in each_file(folder, unreadable):
        reason = _why_not(path)
        if reason:
            left_out(path, reason)
        else:
            yield from _rows(each_frame([path]))
        advance()
    for path, reason in unreadable:
        left_out(path, reason)


def _why_not(path: Path) -> str:
    """Say why a file of a folder holds no images, empty where it does."""
    try:
        if not path.is_file():
            return "not a regular file"
        return "" if holds_images(path) else NOT_DICOM
    except OSError as error:
        return str(error)


def _series(folder: Path, rules: SelectionRules, left_out: LeftOut, advance: Callable[[], None]) -> Iterator[Row]:
    survey = survey_folder(folder, rules, progress=advance)
    for path, reason in survey.unreadable:
        left_out(path, "NIfTI, which tells no series; name it, or take every slice" if is_nifti(path) else reason)
    for decision in survey.decisions:
        if not decision.accepted:
            for path in dict.fromkeys(one.path for one in decision.series.slices):
                left_out(path, "; ".join(decision.reasons))
    yield from _rows(chosen_frames(survey))


def _manifest(path: Path) -> Iterator[Row]:
    for row in read_manifest(path):
        file = path.parent / row.path
        if row.frame is None and is_nifti(file):
            for image in each_frame([file]):
                yield row._replace(path=str(file), frame=image.frame, id=f"{row.id or row.path}#{image.frame}")
        else:
            name = row.path if row.frame is None else f"{row.path}#{row.frame}"
            yield row._replace(path=str(file), id=row.id or name)


def fingerprint(sources: Sequence[str]) -> str:
    """Return a digest of the names and sizes of the files that sources name, and of what manifests among them say.

    Folders of runs do not count, which may lie in a source.
    """
    digest = sha256()
    for place in _places(sources):
        for path in _files(place):
            digest.update(f"{path}\0{_size(path)}\n".encode(errors="surrogateescape"))
        if place.suffix.lower() in SUFFIXES and place.is_file():
            digest.update(place.read_bytes())
    return digest.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    for folder, paths in groupby(each_file(place, []), key=lambda path: path.parent):
        if not (folder / ROWS).exists():
            yield from paths


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link that leads nowhere
        return 0


def of_a_run(path: Path) -> bool:
    """Whether a file lies in the folder of a run."""
    return (path.parent / ROWS).exists()


class Census:
    """Counts the images of a source, tells whether they are the same again, and finds ids that are given twice."""

    def __init__(self) -> None:
        self._names = array("Q")
        self._digest = sha256()

    def add(self, name: str, subject: str, label: str) -> None:
        """Take note of the next image."""
        self._digest.update("\0".join((name, subject, label, "")).encode())
        self._names.append(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self._names)

    @property
    def digest(self) -> str:
        """Of all ids, subjects and labels, in their order."""
        return self._digest.hexdigest()

    def twice(self) -> tuple[int, int] | None:
        """Return the positions of two images of one id, if there are any."""
        names = np.frombuffer(self._names, np.uint64)
        order = np.argsort(names, kind="stable")
        same = np.flatnonzero(np.diff(names[order]) == 0)
        return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else None
