"""Reading a cohort onto a grid, and augmentation."""

from pathlib import Path

import numpy as np
import torch

from limner.imaging.grid import Grid
from limner_server.state.cohorts import CohortStore
from limner_server.training.data import augment, grid_cohort
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


def test_augmentation_repeats_with_its_generator() -> None:
    slices = torch.randn(8, 1, 32, 32)
    first, second, other = (augment(slices, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_augmentation_flips_shifts_and_scales_only() -> None:
    """Every result is some column flip and shift of the slice, with one gain and one offset."""
    size, margin = 64, 3
    slices = torch.randn(12, 1, size, size)
    results = augment(slices, torch.Generator().manual_seed(0))
    inner = slice(margin, size - margin)
    flips, shifts = set(), set()
    for before, after in zip(slices[:, 0], results[:, 0], strict=True):
        fits = []
        for flip in (False, True):
            source = before.flip(1) if flip else before
            for down in range(-margin, margin + 1):
                for right in range(-margin, margin + 1):
                    moved = source.roll((-down, -right), (0, 1))[inner, inner].flatten()
                    found = after[inner, inner].flatten()
                    correlation = torch.corrcoef(torch.stack([moved, found]))[0, 1].item()
                    fits.append((correlation, flip, down, right))
        best = max(fits)
        assert best[0] > 0.9999
        flips.add(best[1])
        shifts.add(best[2:])
    assert flips == {False, True}
    assert len(shifts) > 6
