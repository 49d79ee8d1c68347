"""Cohorts: rows in the database, pixels in a folder. Knows nothing of the wire, of DICOM or of networks."""

import hashlib
import io
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from limner.imaging.slices import Slice
from limner_server.errors import InvalidInputError, LimnerError, NotFoundError, StorageFullError, WrongStateError
from limner_server.files import write_atomic
from limner_server.names import check_name
from limner_server.state.database import CohortRow, SliceRow, open_database, writing


@dataclass(frozen=True)
class NewSlice:
    """A labelled slice that asks to be taken into a cohort."""

    instance: str
    subject: str
    series: str
    label: str
    slice_label: bool
    image: Slice


@dataclass(frozen=True)
class StoredSlice:
    """A slice of a cohort; its pixels stay on disk until `read`."""

    instance: str
    subject: str
    label: str
    row_spacing_mm: float
    column_spacing_mm: float
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    path: Path

    def read(self) -> Slice:
        """Read the pixels."""
        return Slice(
            np.load(self.path, allow_pickle=False),
            self.row_spacing_mm,
            self.column_spacing_mm,
            self.orientation,
            self.position,
        )


@dataclass(frozen=True)
class CohortSnapshot:
    """A cohort as it is at one moment, its slices sorted by instance."""

    name: str
    labels: tuple[str, ...]
    created: datetime
    digest: str
    slices: tuple[StoredSlice, ...]

    def subjects(self) -> dict[str, tuple[str, int]]:
        """Label (the most frequent of its slices) and number of slices of each subject, by id."""
        labels: dict[str, Counter[str]] = defaultdict(Counter)
        for item in self.slices:
            labels[item.subject][item.label] += 1
        return {subject: (counts.most_common(1)[0][0], counts.total()) for subject, counts in sorted(labels.items())}


class CohortStore:
    """All cohorts below one folder and in one database; safe to use from several threads."""

    def __init__(self, database: Engine | str, data_dir: Path) -> None:
        self._engine = open_database(database) if isinstance(database, str) else database
        self._root = data_dir / "cohorts"
        self._writing = threading.Lock()

    def create(self, name: str, labels: Sequence[str], owner: str | None = None) -> None:
        """Create a cohort with its labels in order, or make sure that the one of that name has just these.

        One that is created belongs to `owner`; one that is there keeps the owner it has.

        Raises
        ------
        InvalidInputError
            For a bad name, fewer than two labels, a label twice, or labels that are not the existing cohort's.
        """
        check_name("cohort", name)
        if len(labels) < 2 or len(set(labels)) != len(labels) or not all(labels):
            raise InvalidInputError("labels", list(labels), "two or more labels, each once and not empty")
        with self._writing, writing(self._engine, _lock(name)) as session:
            row = session.get(CohortRow, name)
            if row is None:
                session.add(CohortRow(name=name, labels=list(labels), owner=owner))
            elif row.labels != list(labels):
                raise InvalidInputError(
                    "labels", list(labels), f"the labels of the existing cohort {name!r}: {row.labels}"
                )

    def add(self, name: str, slices: Iterable[NewSlice]) -> list[LimnerError | bool]:
        """Take slices in; for each, True if it was added, False if it was there already, or why it was refused.

        Raises
        ------
        StorageFullError
            Where the disk is full. What was added before stays; nothing half-written does.
        """
        outcomes: list[LimnerError | bool] = []
        with self._writing, writing(self._engine, _lock(name)) as session:
            labels = self._row(session, name).labels
            for item in slices:
                try:
                    outcomes.append(self._add_one(session, name, labels, item))
                except StorageFullError:
                    session.commit()
                    raise
                except LimnerError as error:
                    outcomes.append(error)
        return outcomes

    def snapshot(self, name: str) -> CohortSnapshot:
        """Return the cohort as it is now; NotFoundError if there is none."""
        with Session(self._engine) as session:
            cohort = self._row(session, name)
            rows = session.scalars(select(SliceRow).where(SliceRow.cohort == name).order_by(SliceRow.instance)).all()
            digest = hashlib.sha256(repr(cohort.labels).encode())
            for row in rows:
                digest.update(f"{row.instance}\0{row.subject}\0{row.label}\0{row.pixels_sha256}\n".encode())
            slices = tuple(
                StoredSlice(
                    row.instance,
                    row.subject,
                    row.label,
                    row.row_spacing_mm,
                    row.column_spacing_mm,
                    tuple(row.orientation) if row.orientation else None,
                    tuple(row.position) if row.position else None,
                    self._path(name, row.instance),
                )
                for row in rows
            )
            return CohortSnapshot(name, tuple(cohort.labels), cohort.created, digest.hexdigest(), slices)

    def owner(self, name: str) -> str | None:
        """Whose the cohort is, None for nobody's. NotFoundError if there is none."""
        with Session(self._engine) as session:
            return self._row(session, name).owner

    def names(self) -> list[str]:
        """Names of all cohorts, sorted."""
        with Session(self._engine) as session:
            return list(session.scalars(select(CohortRow.name).order_by(CohortRow.name)))

    def delete(self, name: str) -> None:
        """Delete the cohort, its rows first: what is listed is whole. NotFoundError if there is none."""
        with self._writing:
            with writing(self._engine, _lock(name)) as session:
                self._row(session, name)
                session.execute(delete(SliceRow).where(SliceRow.cohort == name))
                session.execute(delete(CohortRow).where(CohortRow.name == name))
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _row(self, session: Session, name: str) -> CohortRow:
        row = session.get(CohortRow, name)
        if row is None:
            raise NotFoundError("cohort", name, session.scalars(select(CohortRow.name)))
        return row

    def _path(self, cohort: str, instance: str) -> Path:
        return self._root / cohort / f"{instance}.npy"

    def _add_one(self, session: Session, cohort: str, labels: Sequence[str], item: NewSlice) -> bool:
        check_name("instance", item.instance, 128)
        check_name("subject", item.subject, 128)
        if item.label not in labels:
            raise InvalidInputError("label", item.label, f"one of {', '.join(labels)}")
        npy = _npy(item.image.pixels)
        sha256 = hashlib.sha256(npy).hexdigest()
        existing = session.get(SliceRow, (cohort, item.instance))
        if existing is not None:
            if (existing.subject, existing.label, existing.pixels_sha256) != (item.subject, item.label, sha256):
                raise WrongStateError(
                    f"instance {item.instance!r} is in cohort {cohort!r} with another subject, label or other pixels"
                )
            return False
        self._check_subject(session, cohort, item)
        path = self._path(cohort, item.instance)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, npy)
        session.add(
            SliceRow(
                cohort=cohort,
                instance=item.instance,
                subject=item.subject,
                series=item.series,
                label=item.label,
                slice_label=item.slice_label,
                pixels_sha256=sha256,
                row_spacing_mm=item.image.row_spacing_mm,
                column_spacing_mm=item.image.column_spacing_mm,
                orientation=list(item.image.orientation) if item.image.orientation else None,
                position=list(item.image.position) if item.image.position else None,
            )
        )
        return True

    @staticmethod
    def _check_subject(session: Session, cohort: str, item: NewSlice) -> None:
        """Refuse a second label for a subject, unless labels belong to slices."""
        sibling = session.scalars(
            select(SliceRow).where(SliceRow.cohort == cohort, SliceRow.subject == item.subject).limit(1)
        ).first()
        if sibling is None:
            return
        if sibling.slice_label != item.slice_label:
            raise InvalidInputError(
                "slice_label", item.slice_label, f"as for the subject's other slices: {sibling.slice_label}"
            )
        if not item.slice_label and sibling.label != item.label:
            raise InvalidInputError("label", item.label, f"{sibling.label!r}, the label of subject {item.subject!r}")


def _lock(cohort: str) -> str:
    return f"cohort {cohort}"


def _npy(pixels: NDArray[np.generic]) -> bytes:
    """Bytes of a `.npy` file: dtype, shape and values, so that their digest stands for all three."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return buffer.getvalue()
