"""Reading a cohort onto a grid."""

from pathlib import Path

import numpy as np

from limner.imaging.grid import Grid
from limner_server.state.cohorts import CohortStore
from limner_server.training.data import grid_cohort
from tests.server.training.cohorts import LABELS, stored


def test_a_cohort_is_read_as_its_slices_are_resampled(tmp_path: Path) -> None:
    snapshot = CohortStore(stored(tmp_path), tmp_path).snapshot("tiny")
    grid = Grid(120.0, 32)
    cohort = grid_cohort(snapshot, grid, threads=3)
    assert cohort.classes == LABELS
    assert (cohort.name, cohort.digest) == ("tiny", snapshot.digest)
    for index, item in enumerate(snapshot.slices):
        np.testing.assert_array_equal(cohort.images[index], grid.resample(item.read()))
        assert cohort.classes[cohort.labels[index]] == item.label
        assert (cohort.subjects[index], cohort.instances[index]) == (item.subject, item.instance)
