"""A cohort on a grid whose slices stay on disk, so that a simulation takes the same memory for any number of them.

A simulation passes over the slices several times: they are resampled once, into one file of the job's folder, and read
from it block by block. They are read, not mapped: pages of a map count as resident memory, the file cache does not.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limner.imaging.files import replace_file
from limner.imaging.grid import Grid
from limner_server.errors import WrongStateError
from limner_server.files import storage_full_named
from limner_server.state.cohorts import CohortSnapshot, StoredSlice

BLOCK = 256

Rows = NDArray[np.int64]
Images = NDArray[np.float32]


class Slices(Protocol):
    """Slices that are read by their rows; an array `(n, s, s)` is one."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, rows: Rows, /) -> Images:
        """Read some of them, `(len(rows), s, s)`, in the slices' own units."""


@dataclass(frozen=True, eq=False)
class SliceCohort:
    """Every slice of a cohort, resampled to one grid.

    Attributes
    ----------
    images
        `n` slices of `(s, s)` float32, in their own units.
    labels
        `(n,)` int64, index into `classes`.
    subjects, instances
        `(n,)` ids.
    classes
        The labels, the class of interest last.
    name, digest
        Of the cohort.
    """

    images: Slices
    labels: NDArray[np.int64]
    subjects: NDArray[np.str_]
    instances: NDArray[np.str_]
    classes: tuple[str, ...]
    name: str
    digest: str

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_] | Rows) -> "SliceCohort":
        """Return some of the slices, by mask or by row, without reading them."""
        rows = np.arange(len(self))[chosen]
        return replace(
            self,
            images=_Chosen(self.images, rows),
            labels=self.labels[rows],
            subjects=self.subjects[rows],
            instances=self.instances[rows],
        )

    def thin(self, slices: int) -> "SliceCohort":
        """Return at most `slices` of the slices, as many of each class, spread evenly over its subjects."""
        order = np.argsort(self.subjects, kind="stable")
        share = max(1, slices // len(self.classes))
        chosen = []
        for label in range(len(self.classes)):
            rows = order[self.labels[order] == label]
            chosen.append(rows[np.unique(np.linspace(0, len(rows) - 1, share).astype(int))])
        return self.take(np.sort(np.concatenate(chosen)))

    def blocks(self, size: int = BLOCK) -> Iterator[Rows]:
        """Yield the rows of all slices, `size` at a time."""
        for first in range(0, len(self), size):
            yield np.arange(first, min(first + size, len(self)))

    def load(self) -> Images:
        """Read all slices, `(n, s, s)`: for a cohort that has been made small."""
        return self.images[np.arange(len(self))]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some rows of other slices."""

    slices: Slices
    chosen: Rows

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Rows, /) -> Images:
        return self.slices[self.chosen[rows]]


@dataclass(frozen=True)
class SliceFile:
    """`count` slices `(size, size)` one after the other in a file, as this machine's float32; for several threads."""

    path: Path
    count: int
    size: int

    @property
    def nbytes(self) -> int:
        """Size of a whole file."""
        return self.count * self._stride

    @property
    def whole(self) -> bool:
        """Whether the file is there with all its slices."""
        return self.path.is_file() and self.path.stat().st_size == self.nbytes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Rows, /) -> Images:
        images = np.empty((len(rows), self.size, self.size), np.float32)
        with self.path.open("rb") as file:
            for row, image in zip(rows.tolist(), images, strict=True):
                file.seek(row * self._stride)
                if file.readinto(image.data) != self._stride:
                    raise WrongStateError(f"{self.path.name} ends before slice {row} of {self.count}")
        return images

    @property
    def _stride(self) -> int:
        return self.size * self.size * np.dtype(np.float32).itemsize


def spool_cohort(
    snapshot: CohortSnapshot, grid: Grid, path: Path, threads: int = 2, tell: Callable[[float], None] = lambda _: None
) -> SliceCohort:
    """Resample every slice of a cohort into one file, or use the file that is there.

    Parameters
    ----------
    snapshot
        The cohort.
    grid
        What its slices are resampled to.
    path
        The file; whole or not there.
    threads
        That read and resample.
    tell
        Told the share that is done, 0 to 1.

    Returns
    -------
    The slices ordered by subject, label and instance: one pass over them reads the file from one end to the other.

    Raises
    ------
    StorageFullError
        The disk is full; nothing of the file is left.
    """
    labels = {label: index for index, label in enumerate(snapshot.labels)}
    slices = sorted(snapshot.slices, key=lambda item: (item.subject, labels[item.label], item.instance))
    images = SliceFile(path, len(slices), grid.size)
    if not images.whole:
        _write(slices, grid, path, threads, tell)
    return SliceCohort(
        images=images,
        labels=np.array([labels[item.label] for item in slices], np.int64),
        subjects=np.array([item.subject for item in slices], np.str_),
        instances=np.array([item.instance for item in slices], np.str_),
        classes=snapshot.labels,
        name=snapshot.name,
        digest=snapshot.digest,
    )


def _write(slices: list[StoredSlice], grid: Grid, path: Path, threads: int, tell: Callable[[float], None]) -> None:
    def gridded(item: StoredSlice) -> Images:
        return grid.resample(item.read())

    with (
        storage_full_named(path.name),
        replace_file(path) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(threads) as pool,
    ):
        for first in range(0, len(slices), BLOCK):
            for image in pool.map(gridded, slices[first : first + BLOCK]):
                file.write(np.ascontiguousarray(image, np.float32).data)
            tell(min(1.0, (first + BLOCK) / len(slices)))
        file.flush()
        os.fsync(file.fileno())
