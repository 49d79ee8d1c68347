"""Pulling from a DICOMweb service: QIDO-RS finds (PS3.18 10.6), WADO-RS fetches single instances (10.4)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO

from pydicom.dataset import Dataset
from requests import Response, Session
from requests.exceptions import ChunkedEncodingError

from limner.gateway.peers import PeerError, RefusedError, UnreachableError, dicomweb_client, http_errors
from limner.gateway.pull.query import Level
from limner.gateway.pull.sources import UNIQUE, Failure, Fetch, Instance
from limner.gateway.receiver import Keeper


class DicomwebSource:
    """A DICOMweb service.

    Parameters
    ----------
    url
        Base of the service, such as `https://pacs.example/dicom-web`.
    session
        Carries the credentials; for this source alone.
    timeout_s
        How long an answer may take.
    page_size
        Answers to ask for at a time; a service may give fewer.

    Raises
    ------
    ValueError
        `url` is none, or holds credentials.
    """

    batch = 1

    def __init__(self, url: str, session: Session, timeout_s: float = 60.0, page_size: int = 500) -> None:
        self._url = url
        self._page_size = page_size
        self._client = dicomweb_client(url, session, timeout_s)
        session.hooks["response"].append(_refuse_cut_answers)

    def find(self, level: Level, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Dataset]:
        """Search page after page until one brings nothing new: a service may give fewer than it is asked for."""
        found: dict[str, Dataset] = {}
        offset = 0
        while True:
            page = self._page(level, dict(keys), wanted, offset)
            fresh = {str(one.get(UNIQUE[level], "")): one for one in page}
            if not fresh.keys() - found.keys():
                return list(found.values())
            found |= fresh
            offset += len(page)

    def _page(self, level: Level, keys: dict[str, str], wanted: Sequence[str], offset: int) -> list[Dataset]:
        searches: Mapping[Level, Callable[..., list[dict[str, dict[str, object]]]]] = {
            "STUDY": self._client.search_for_studies,
            "SERIES": self._client.search_for_series,
            "IMAGE": self._client.search_for_instances,
        }
        above = {"STUDY": 0, "SERIES": 1, "IMAGE": 2}[level]
        uids = [keys.pop(keyword) for keyword in list(UNIQUE.values())[:above]]
        with http_errors(self._url):
            answers = searches[level](*uids, fields=wanted, search_filters=keys, limit=self._page_size, offset=offset)
        try:
            return [Dataset.from_json(answer) for answer in answers]
        except Exception as error:  # anything may be in there
            raise PeerError(f"{self._url} answered what is not DICOM: {type(error).__name__}") from error

    @contextmanager
    def opened(self, keeper: Keeper) -> Iterator[Fetch]:
        """Fetch by WADO-RS, in the transfer syntax that an instance has there."""
        yield partial(self._fetch, keeper)

    def _fetch(self, keeper: Keeper, instances: Sequence[Instance], _whole: bool) -> Failure | None:
        (instance,) = instances
        content = BytesIO()
        try:
            with http_errors(self._url):
                found = self._client.retrieve_instance(instance.study_uid, instance.series_uid, instance.uid)
            found.save_as(content, enforce_file_format=True)
            uid, study = str(found.SOPInstanceUID), str(found.StudyInstanceUID)
        except RefusedError:
            raise
        except PeerError as error:
            return Failure(str(error), passing=isinstance(error, UnreachableError))
        except Exception as error:  # a corrupt byte may raise anything in the parser
            # Its text may quote what is in there.
            return Failure(f"{self._url} answered what cannot be read: {type(error).__name__}", passing=False)
        try:
            keeper.receive(uid, study, self._url, content.getvalue())
        except ValueError as error:
            return Failure(f"{self._url} answered another instance: {error}", passing=False)
        return None

    def __str__(self) -> str:
        return self._url


def _refuse_cut_answers(response: Response, **_: object) -> None:
    """Raise where the end of a multipart answer is missing (RFC 2046 5.1.1): it would be taken for whole."""
    kind = response.headers.get("Content-Type", "")
    if kind.lower().startswith("multipart/") and not response.content.rstrip().endswith(b"--"):
        raise ChunkedEncodingError("the answer is cut short")
