"""Studies for a PACS and a gateway: new ones each time, since what is known already costs a receiver nothing."""

from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

REAL_SLICES = Path(__file__).parents[1] / "tests/data/prostatex/ProstateX-0000/t2-transverse"
"""Real T2-weighted slices of 384 x 384."""


def write_study(folder: Path, slices: int, sources: Sequence[FileDataset] | None = None) -> list[Path]:
    """Write a study of one series.

    Parameters
    ----------
    folder
        Made where it is missing.
    slices
        How many.
    sources
        Instances that its slices are copies of, under new UIDs; None: real ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = sources or [dcmread(path) for path in sorted(REAL_SLICES.glob("*.dcm"))]
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(slices):
        instance = sources[number % len(sources)]
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        instance.InstanceNumber = number + 1
        instance.ImagePositionPatient = [0, 0, 3 * number]
        paths.append(folder / f"{instance.SOPInstanceUID}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return paths
