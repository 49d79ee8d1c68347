"""A cohort on a grid, in memory, and its augmentation. Knows nothing of networks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner.imaging.grid import Grid
from limner_server.state.cohorts import CohortSnapshot

SHIFT = 6 / 128
"""Largest shift, as a share of the grid's edge."""
GAIN = 0.1
OFFSET = 0.1


@dataclass(frozen=True, eq=False)
class GriddedCohort:
    """Every slice of a cohort, resampled to one grid.

    Attributes
    ----------
    images
        `(n, s, s)` float32, in the slices' own units.
    labels
        `(n,)` int64, index into `classes`.
    subjects, instances
        `(n,)` ids.
    classes
        The labels, the class of interest last.
    name, digest
        Of the cohort.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    subjects: NDArray[np.str_]
    instances: NDArray[np.str_]
    classes: tuple[str, ...]
    name: str
    digest: str


def grid_cohort(snapshot: CohortSnapshot, grid: Grid, threads: int = 2) -> GriddedCohort:
    """Read and resample every slice of a cohort once, on `threads` threads."""
    size = grid.size
    images = np.empty((len(snapshot.slices), size, size), np.float32)

    def fill(index: int) -> None:
        images[index] = grid.resample(snapshot.slices[index].read())

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, range(len(images))):
            pass  # re-raises what a thread raised
    return GriddedCohort(
        images=images,
        labels=np.array([snapshot.labels.index(item.label) for item in snapshot.slices], np.int64),
        subjects=np.array([item.subject for item in snapshot.slices], np.str_),
        instances=np.array([item.instance for item in snapshot.slices], np.str_),
        classes=snapshot.labels,
        name=snapshot.name,
        digest=snapshot.digest,
    )


def augment(slices: Tensor, generator: torch.Generator) -> Tensor:
    """Flip left to right, shift, and vary gain and offset of normalised slices `(n, 1, s, s)`.

    All chance comes from `generator`, a CPU generator, so that any device sees the same variations.
    """
    count, _, size, _ = slices.shape
    margin = max(1, round(SHIFT * size))
    flipped = torch.rand(count, generator=generator) < 0.5
    shifts = torch.randint(-margin, margin + 1, (2, count, 1), generator=generator)
    gain = 1 + GAIN * torch.randn(count, 1, 1, 1, generator=generator)
    offset = OFFSET * torch.randn(count, 1, 1, 1, generator=generator)

    steps = torch.arange(size)
    columns = torch.where(flipped[:, None], steps.flip(0), steps)
    # Clamping repeats the edge where a shift would look outside.
    rows, columns = (steps + shifts[0]).clamp(0, size - 1), (columns + shifts[1]).clamp(0, size - 1)
    device = slices.device
    picked = slices[
        torch.arange(count, device=device)[:, None, None],
        0,
        rows.to(device)[:, :, None],
        columns.to(device)[:, None, :],
    ]
    return picked.unsqueeze(1) * gain.to(device) + offset.to(device)
