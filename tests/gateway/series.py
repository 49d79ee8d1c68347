"""Series as they come from scanners, PACS and archives, each with a peculiarity of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import generate_uid

from tests.imaging.builders import TRANSVERSE, enhanced_mr, mr_instance

OBLIQUE = [0.8, 0.36, 0.48, -0.6, 0.48, 0.64]
"""Rows and columns run between the patient's axes."""

JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
RNG = np.random.default_rng(0)


def real(folder: Path) -> None:
    """Of a real patient: as many slices as are here, at distances of three slices."""
    for path in TRANSVERSE.glob("*.dcm"):
        (folder / path.name).write_bytes(path.read_bytes())


def enhanced(folder: Path) -> None:
    """One Enhanced MR instance."""
    _save(_located(enhanced_mr(_pixels(5, 48, 40))), folder)


def stacks(folder: Path) -> None:
    """One Enhanced MR instance whose frames have their orientation and spacing each for itself."""
    dataset = _located(enhanced_mr(_pixels(5, 48, 40)))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    _save(dataset, folder)


def frames(folder: Path) -> None:
    """One Enhanced MR instance with two frames at each of five places."""
    dataset = _located(enhanced_mr(_pixels(10, 48, 40)))
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [index // 2, 0, 0]
    _save(dataset, folder)


def oblique(folder: Path) -> None:
    """Slices between the patient's planes."""
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    _series(
        folder, lambda index: {"ImageOrientationPatient": OBLIQUE, "ImagePositionPatient": list(normal * 4 * index)}
    )


def bare(folder: Path) -> None:
    """Without any attribute of type 2: no name, no dates, no numbers, no thickness."""
    _series(folder, lambda _: {}, without=["PatientID"])


def latin(folder: Path) -> None:
    """Of a patient with umlauts, in Latin-1, nested sequences too."""
    _series(folder, lambda _: {**_in_characters("ISO_IR 100", "Müller^Jürg"), "StudyDescription": "Bäcken"})


def utf8(folder: Path) -> None:
    """Of a patient with a Greek name, in UTF-8."""
    _series(folder, lambda _: _in_characters("ISO_IR 192", "Παπαδόπουλος^Γιώργος"))


def japanese(folder: Path) -> None:
    """Of a patient with a name in three scripts, by ISO 2022 escape sequences."""
    _series(folder, lambda _: _in_characters(["", "ISO 2022 IR 87"], JAPANESE))


def malformed(folder: Path) -> None:
    """Of a sender that has its own mind about dates, sexes and numbers."""
    wrong = {"PatientBirthDate": "01.02.60", "PatientSex": "W", "StudyTime": "25:61", "SeriesNumber": -3}
    _series(folder, lambda _: {**wrong, "PatientName": "no caret at all", "StudyDate": "20200230"})


def repeated(folder: Path) -> None:
    """Acquired twice: two slices at each of five places."""
    _series(folder, lambda index: {"ImagePositionPatient": [0, 0, index // 2]}, slices=10)


def split(folder: Path) -> None:
    """Under two SeriesInstanceUIDs, as some archives store it."""
    uids = (generate_uid(), generate_uid())
    _series(folder, lambda index: {"SeriesInstanceUID": uids[index % 2], "SeriesNumber": 4}, slices=6)


SERIES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (real, enhanced, stacks, frames, oblique, bare, latin, utf8, japanese, malformed, repeated, split)
}


def _pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 1000, shape, np.uint16)


def _series(
    folder: Path, attributes: Callable[[int], dict[str, object]], without: list[str] | None = None, slices: int = 5
) -> None:
    common = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    }
    for index in range(slices):
        place = {"ImagePositionPatient": [-12, 7, 3.5 * index], **common}
        with config.disable_value_validation():
            dataset = mr_instance(_pixels(48, 40), **{**place, **attributes(index)})
            for keyword in without or ():
                delattr(dataset, keyword)
            _save(dataset, folder)


def _located(dataset: FileDataset) -> FileDataset:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID = generate_uid()
    return dataset


def _in_characters(character_set: str | list[str], name: str) -> dict[str, object]:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99LOCAL", name.split("=")[-1]
    return {"SpecificCharacterSet": character_set, "PatientName": name, "ProcedureCodeSequence": [code]}


def _save(dataset: FileDataset, folder: Path) -> None:
    dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
