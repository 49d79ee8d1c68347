"""De-identifying a folder of DICOM into another: what `limner deidentify` does, file by file.

What is done to a file is `limner.imaging.profile`'s. A run that was interrupted is resumed by repeating it: each output
is whole or not there, and its pseudonyms are on the disk before it is.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileDataset

from limner.errors import invalid_input
from limner.imaging.deidentify import Pseudonymiser
from limner.imaging.errors import ImageError
from limner.imaging.files import each_file, replace_file
from limner.imaging.headers import NOT_DICOM, read_header, why_unreadable
from limner.imaging.profile import Retain, deidentified, encoded, method
from limner.imaging.pseudonym_map import PseudonymMap


@dataclass(frozen=True)
class DeidentifiedFolder:
    """What became of the files of a folder.

    Attributes
    ----------
    written, unchanged
        Number of files written, and of those whose output was there already.
    failed
        DICOM that could not be de-identified, and why. Nothing of it is in the output.
    other
        Files that are no DICOM.
    """

    written: int
    unchanged: int
    failed: tuple[tuple[Path, str], ...]
    other: tuple[Path, ...]


def deidentify_folder(
    folder: Path,
    out: Path,
    names: PseudonymMap,
    retain: Collection[Retain] = (),
    progress: Callable[[], None] | None = None,
) -> DeidentifiedFolder:
    """Write every MR image of a folder de-identified to `out`, as SUBJECT/SERIES/INSTANCE.dcm of pseudonyms.

    Parameters
    ----------
    folder
        In any arrangement.
    out
        Made where it is missing, readable by its owner only; not in `folder`.
    names
        Gives pseudonyms and keeps them for the way back.
    retain
        Options of the profile.
    progress
        Called once after each file.

    Raises
    ------
    InvalidInputError
        When `folder` is none, `out` lies in it, or the map in `out`.
    OSError
        When an output or the map cannot be written.
    """
    if not folder.is_dir():
        raise invalid_input(ImageError("folder", folder, "an existing folder"))
    if out.resolve().is_relative_to(folder.resolve()):
        raise invalid_input(ImageError("out", out, f"a folder outside {folder}"))
    if names.path.resolve().is_relative_to(out.resolve()):
        raise invalid_input(ImageError("map", names.path, f"a file outside {out}: it tells who is who"))
    written = unchanged = 0
    failed: list[tuple[Path, str]] = []
    other: list[Path] = []
    for path in each_file(folder, failed):
        try:
            if _deidentify(path, out, names, retain):
                written += 1
            else:
                unchanged += 1
        except _UnreadableError as error:
            if str(error) == NOT_DICOM:
                other.append(path)
            else:
                failed.append((path, str(error)))
        if progress:
            progress()
    return DeidentifiedFolder(written, unchanged, tuple(failed), tuple(other))


class _UnreadableError(Exception):
    """An input cannot be used; an output that cannot be written is another matter, and ends the run."""


def _deidentify(path: Path, out: Path, names: PseudonymMap, retain: Collection[Retain]) -> bool:
    """Write the output of a file; return False where it is there already."""
    header = _read(path, names, retain, pixels=False)
    for keyword in ("PatientID", "SeriesInstanceUID"):
        if not header.get(keyword):
            raise _UnreadableError(str(ImageError(keyword, "missing", "an image that can be told from others")))
    target = out / str(header.PatientID) / str(header.SeriesInstanceUID) / f"{header.SOPInstanceUID}.dcm"
    if _is_there(target, method(retain)):
        names.save()
        return False
    try:
        content = encoded(_read(path, names, retain, pixels=True))
    except ImageError as error:
        raise _UnreadableError(str(error)) from error
    names.save()
    for made in (out, target.parent.parent, target.parent):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replace_file(target) as temporary:
        temporary.write_bytes(content)
    return True


def _read(path: Path, names: Pseudonymiser, retain: Collection[Retain], *, pixels: bool) -> FileDataset:
    try:
        if not path.is_file():
            raise ImageError("file", "not a regular file", "a DICOM file")
        return deidentified(path, names, retain, pixels=pixels)
    except (ImageError, OSError) as error:
        raise _UnreadableError(why_unreadable(path, error)) from error


def _is_there(target: Path, made_by: str) -> bool:
    """Whether an output is there and was made with the same options."""
    if not target.exists():
        return False
    try:
        found = read_header(target).get("DeidentificationMethod")
    except ImageError:
        return False
    return made_by in ([found] if isinstance(found, str) else found or ())
