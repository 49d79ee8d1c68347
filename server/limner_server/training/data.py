"""A cohort on a grid, in memory. Knows nothing of networks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.imaging.grid import Grid
from limner_server.state.cohorts import CohortSnapshot


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
