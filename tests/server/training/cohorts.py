"""Small cohorts: as arrays, and in a real store."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limner.imaging.slices import Slice
from limner_server.state.cohorts import CohortStore, NewSlice
from limner_server.training.data import GriddedCohort

LABELS = ("no", "yes")


def gridded(subjects: Sequence[str], labels: Sequence[int], classes: Sequence[str] = LABELS) -> GriddedCohort:
    """A cohort with one slice of noise for each entry."""
    count = len(subjects)
    return GriddedCohort(
        images=np.random.default_rng(0).normal(size=(count, 32, 32)).astype(np.float32),
        labels=np.array(labels, np.int64),
        subjects=np.array(subjects, np.str_),
        instances=np.array([f"i{index}" for index in range(count)], np.str_),
        classes=tuple(classes),
        name="tiny",
        digest="d",
    )


def stored(data_dir: Path, subjects: int = 6, slices: int = 3, name: str = "tiny") -> str:
    """Store a cohort whose second class has a bright square, and return the URL of its database."""
    data_dir.mkdir(exist_ok=True)
    url = f"sqlite:///{data_dir / 'limner.sqlite'}"
    store = CohortStore(url, data_dir)
    store.create(name, LABELS)
    generator = np.random.default_rng(0)
    items = []
    for subject in range(subjects):
        label = subject % 2
        for number in range(slices):
            pixels = generator.normal(100, 20, (40, 40)).astype(np.float32)
            pixels[12:28, 12:28] += 60 * label
            image = Slice(pixels, 4.0, 4.0)
            items.append(NewSlice(f"s{subject}-{number}", f"s{subject}", "", LABELS[label], False, image))
    assert store.add(name, items) == [True] * len(items)
    return url
