"""The cohorts that benchmarks train and simulate on, put where a server keeps its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.models import LABELS, random_slices
from limner.imaging.phantom import LABELS as PHANTOM_LABELS
from limner.imaging.phantom import STORED_PER_SIGNAL, phantom_recurrent
from limner.imaging.phantom_anatomy import PIXEL_MM, phantom_subject
from limner.imaging.slices import Slice
from limner_server.state.cohorts import CohortSnapshot, CohortStore, NewSlice

SLICES_PER_SUBJECT = 12


@dataclass(frozen=True)
class StoredCohort:
    """A cohort in a database and a folder of its own."""

    root: Path
    name: str

    @property
    def url(self) -> str:
        """Of the database."""
        return f"sqlite:///{self.root / 'limner.sqlite'}"

    def snapshot(self) -> CohortSnapshot:
        """The cohort as it is."""
        return CohortStore(self.url, self.root).snapshot(self.name)


def store_phantom(root: Path, subjects: int = 27, seed: int = 0) -> StoredCohort:
    """Store the phantom cohort, as `limner phantom` and `limner cohort import` would."""
    return _store(root, "phantom", PHANTOM_LABELS, _phantom(subjects, seed))


def store_random(root: Path, slices: int, size: int, spacing_mm: float) -> StoredCohort:
    """Store a cohort of noise, 12 slices a subject, of which every second has the second label."""
    return _store(root, "random", LABELS, _random(slices, size, spacing_mm))


def _store(root: Path, name: str, labels: tuple[str, ...], slices: Iterator[NewSlice]) -> StoredCohort:
    cohort = StoredCohort(root, name)
    store = CohortStore(cohort.url, root)
    store.create(name, labels)
    assert all(store.add(name, slices))
    return cohort


def _phantom(subjects: int, seed: int) -> Iterator[NewSlice]:
    for index, recurrent in enumerate(phantom_recurrent(subjects, seed).tolist()):
        subject = f"PH-{index:03d}"
        for number, pixels in enumerate(phantom_subject(seed, index, recurrent)):
            stored = np.clip(np.rint(pixels * STORED_PER_SIGNAL), 0, 4095).astype(np.uint16)
            image = Slice(stored, PIXEL_MM, PIXEL_MM)
            yield NewSlice(f"{subject}-{number:02d}", subject, "", PHANTOM_LABELS[recurrent], False, image)


def _random(slices: int, size: int, spacing_mm: float) -> Iterator[NewSlice]:
    some = random_slices(64, size)
    for index in range(slices):
        subject = index // SLICES_PER_SUBJECT
        # Rolled, so that no two are equal.
        image = Slice(np.roll(some[index % 64], index // 64, axis=1), spacing_mm, spacing_mm)
        yield NewSlice(f"i{index:06d}", f"s{subject:05d}", "", LABELS[subject % 2], False, image)
