"""Cohorts and imports."""

from datetime import datetime
from typing import TYPE_CHECKING

from limner.types.common import Rejection, Result

if TYPE_CHECKING:
    import pandas as pd


class CohortSubject(Result):
    """One subject: pseudonym, label (with slice labels the most frequent), number of slices."""

    subject: str
    label: str
    slices: int


class Cohort(Result):
    """A cohort: labels in order, the class of interest last; `digest` is equal for equal cohorts.

    `instances` holds the sorted ids of all slices where they were asked for, else nothing.
    """

    name: str
    labels: tuple[str, ...]
    subjects: tuple[CohortSubject, ...]
    slices: int
    digest: str
    created: datetime
    instances: tuple[str, ...] = ()

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row for each subject, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.rows(self))


class ImportResult(Result):
    """What became of an import: the cohort after it, slices added, there already, and refused with the reason."""

    cohort: Cohort
    added: int
    unchanged: int
    rejected: tuple[Rejection, ...]
