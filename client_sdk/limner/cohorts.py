"""Labelled slices on their way into a cohort; `limner.cohort_import` finds them in a folder of DICOM."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limner.errors import InvalidInputError, local_failure
from limner.images import load
from limner.imaging.errors import ImageError
from limner.imaging.slices import Slice
from limner.requests import pixels
from limner.types import Rejection
from limner.v1 import cohort_pb2

if TYPE_CHECKING:
    from limner.images import Content

Advance = Callable[[int, int], None]
"""Told how many slices are done, of how many."""


@dataclass(frozen=True, eq=False)
class CohortSlice:
    """One labelled slice of one subject.

    Attributes
    ----------
    instance, subject, series
        Pseudonyms, at most 128 characters: what you give here is what the server keeps. A second import of an instance
        adds nothing.
    label
        One of the plan's labels.
    content
        A DICOM file as path, bytes or `Dataset`, decoded when it is sent; or a decoded `Slice`.
    frame
        Frame of a multi-frame DICOM file, from 0.
    slice_label
        True where the label belongs to the slice and may differ within a subject.
    """

    instance: str
    subject: str
    label: str
    content: "Content"
    series: str = ""
    frame: int = 0
    slice_label: bool = False


@dataclass(frozen=True, eq=False)
class CohortPlan:
    """What is to be imported: the class labels in order, the class of interest last, and the slices."""

    labels: tuple[str, ...]
    slices: Collection[CohortSlice]


class Upload:
    """An import, in as many calls as it takes: sends what the server does not have, and keeps count of the rest.

    Attributes
    ----------
    known
        Number of slices that the server had before.
    stored
        Number of slices that calls have stored whose server was lost.
    refused
        Slices that could not be read here.
    """

    def __init__(self, cohort: str, plan: CohortPlan, there: Collection[str], advance: Advance | None) -> None:
        self._cohort = cohort
        self._plan = plan
        self._there = frozenset(there)
        self._advance = advance
        self.known = sum(item.instance in self._there for item in plan.slices)
        self.stored = 0
        self.refused: list[Rejection] = []

    def messages(self) -> Iterator[cohort_pb2.ImportCohortRequest]:
        """Give the header, then the slices that are missing there and can be read here."""
        header = cohort_pb2.ImportHeader(cohort=self._cohort, labels=self._plan.labels)
        yield cohort_pb2.ImportCohortRequest(header=header)
        refused: list[Rejection] = []
        self.refused = refused  # of this call alone: one that is lost may not have noticed it yet
        for done, item in enumerate(self._plan.slices, start=1):
            if item.instance not in self._there and (message := self._read(item, refused)) is not None:
                yield cohort_pb2.ImportCohortRequest(slice=message)
            if self._advance is not None:
                self._advance(done, len(self._plan.slices))

    def resume(self, there: Collection[str]) -> bool:
        """Have the next call send what the server does not have now; True if it has more than it had."""
        before, self._there = self.stored, frozenset(there)
        self.stored = sum(item.instance in self._there for item in self._plan.slices) - self.known
        return self.stored > before

    def _read(self, item: CohortSlice, refused: list[Rejection]) -> cohort_pb2.CohortSlice | None:
        try:
            image = load(item.content, item.frame)
            if not isinstance(image, Slice):
                raise ImageError("content", np.ndarray.__name__, "a Slice or DICOM: a cohort keeps geometry too")
            content = pixels(image)
        except (ImageError, InvalidInputError, OSError) as error:
            refused.append(Rejection(id=item.instance, error=local_failure(error)))
            return None
        return cohort_pb2.CohortSlice(
            instance=item.instance,
            subject=item.subject,
            series=item.series,
            label=item.label,
            slice_label=item.slice_label,
            pixels=content,
        )
