"""What the tests of pulling share: a real Orthanc with real slices, small series, and what is in a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from pydicom import FileDataset, dcmread
from pydicom.uid import generate_uid

from tests.gateway.orthanc import Orthanc, free_port
from tests.imaging.builders import DATA, content, mr_instance

REAL = sorted(DATA.rglob("*.dcm"))
STUDIES = sorted({str(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID) for path in REAL})
SOURCES = ("dicomweb", "get", "move")

PORT = free_port()
"""Where C-MOVE sends to: Orthanc has to know it beforehand."""


@contextmanager
def real_pacs(folder: Path, user: tuple[str, str] | None = None) -> Iterator[Orthanc]:
    """Serve the real slices, of two studies; tests add studies of their own."""
    with Orthanc(folder, user, DicomModalities={"limner": ["LIMNER", "127.0.0.1", PORT]}) as orthanc:
        for path in REAL:
            orthanc.add(path.read_bytes())
        yield orthanc


def source(name: str, pacs: Orthanc) -> list[str]:
    """The options of a way to pull."""
    if name == "dicomweb":
        return [f"--dicomweb={pacs.url}/dicom-web"]
    options = [f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}"]
    return [*options, "--move", "--host=127.0.0.1", f"--port={PORT}"] if name == "move" else options


def t2_series(slices: int = 5, **attributes: object) -> list[FileDataset]:
    """A small T2 series, of a study of its own."""
    attributes = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), **attributes}
    pixels = np.random.default_rng(0).integers(0, 1000, (slices, 32, 32), np.uint16)
    return [
        mr_instance(pixels[index], SOPInstanceUID=generate_uid(), ImagePositionPatient=[0, 0, index], **attributes)
        for index in range(slices)
    ]


def add(pacs: Orthanc, *series: list[FileDataset]) -> str:
    """Add series; return the StudyInstanceUID of the last."""
    for instance in chain.from_iterable(series):
        meta = instance.file_meta
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
        pacs.add(content(instance))
    return str(series[-1][0].StudyInstanceUID)


def instances(study: str) -> dict[str, Path]:
    """The files of a real study, by their UIDs."""
    headers = {path: dcmread(path, stop_before_pixels=True) for path in REAL}
    return {str(one.SOPInstanceUID): path for path, one in headers.items() if one.StudyInstanceUID == study}


def files(folder: Path) -> dict[str, Path]:
    """Everything in a folder, by its UID; no name but a UID's is there."""
    found = {path.stem: path for path in folder.rglob("*") if path.is_file()}
    assert all(path.suffix == ".dcm" and not path.name.startswith(".") for path in found.values())
    return found


def summary(out: str) -> dict[str, object]:
    """What `limner pull --json` says."""
    found: dict[str, object] = json.loads(out)
    return found
