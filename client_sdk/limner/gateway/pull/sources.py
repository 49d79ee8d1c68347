"""What a pull needs of the place it pulls from; `dicomweb.py` and `dimse.py` have such places.

A source finds what there is and fetches what it is told to; what is worth fetching, and what to do when that fails, is
`puller.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pydicom.dataset import Dataset

from limner.gateway.pull.query import Level
from limner.gateway.receiver import Keeper

UNIQUE: Mapping[Level, str] = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


@dataclass(frozen=True)
class Instance:
    """An instance that a source has.

    Attributes
    ----------
    storage_class
        SOPClassUID; empty where the source does not tell.
    """

    study_uid: str
    series_uid: str
    uid: str
    storage_class: str


@dataclass(frozen=True)
class Failure:
    """Why instances that were asked for have not come.

    Attributes
    ----------
    passing
        Whether it may be otherwise when they are asked for again.
    """

    reason: str
    passing: bool


Fetch = Callable[[Sequence[Instance], bool], Failure | None]
"""Fetches instances of one series, which are all that it has where the second argument says so, into a `Keeper`.

Returns why those that have not come have not. Raises `RefusedError` where there is no use in going on, and `OSError`
where they cannot be kept.
"""


class Source(Protocol):
    """A place that studies are pulled from; safe to use from several threads."""

    @property
    def batch(self) -> int:
        """How many instances are best fetched at a time."""
        ...

    def find(self, level: Level, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Dataset]:
        """Return what matches all keys, with the attributes wanted where the source has them.

        Parameters
        ----------
        keys
            Values to match, by keyword; of the levels above `level` the UID.
        wanted
            Keywords.

        Raises
        ------
        PeerError
            It did not answer, or refused.
        """
        ...

    def opened(self, keeper: Keeper) -> AbstractContextManager[Fetch]:
        """Get ready to fetch. OSError where a port to listen on is taken."""
        ...
