"""Where results go: to a PACS by C-STORE (PS3.4 annex B), or by STOW-RS (PS3.18 10.5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from requests import HTTPError, RequestException, Session

from limner.gateway.peers import Node, RefusedError, UnreachableError, UnsupportedError, dicomweb_client

SUCCESS = 0x0000
DUPLICATE = 0x0111
"""Status of an instance that is there already (PS3.7 C.5.7): what a sending before a crash may leave."""
OUT_OF_RESOURCES = 0xA7
"""First byte of the statuses of a destination that has no room just now (PS3.4 B.2.3)."""

# Answers that say something of what was sent; after any other the same may be taken later (PS3.18 10.5.3).
REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


class Destination(Protocol):
    """Takes results."""

    def store(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Deliver DICOM files; return those that were refused, and why, once all others have been acknowledged.

        Raises
        ------
        UnreachableError
            It came to no end; some may have been taken.
        """
        ...


@dataclass(frozen=True)
class Pacs(Node):
    """A storage provider."""

    def store(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Deliver files in one association."""
        datasets = {path: dcmread(path) for path in paths}
        wanted = {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in datasets.values()}
        contexts = [build_context(storage_class, syntax) for storage_class, syntax in sorted(wanted)]
        try:
            with self.associate(contexts) as association:
                answers = {path: self._store(association, dataset) for path, dataset in datasets.items()}
        except UnsupportedError as error:
            return dict.fromkeys(paths, str(error))
        except RefusedError as error:  # it may be told of us
            raise UnreachableError(str(error)) from error
        return {path: refusal for path, refusal in answers.items() if refusal}

    def _store(self, association: Association, dataset: Dataset) -> str:
        """Deliver one object; return why it was refused, empty where it was not."""
        if dataset.SOPClassUID not in {context.abstract_syntax for context in association.accepted_contexts}:
            return f"{self} takes no {dataset.SOPClassUID.name}"
        try:
            answer = association.send_c_store(dataset)
        except RuntimeError:  # it ended the association before
            answer = Dataset()
        if "Status" not in answer:
            raise UnreachableError(f"{self} ended the association")
        status = int(answer.Status)
        if status >> 8 == OUT_OF_RESOURCES:
            raise UnreachableError(f"{self} is out of resources")
        if status in (SUCCESS, DUPLICATE) or status >> 12 == 0xB:  # B: stored, with a warning
            return ""
        return f"{self} answered status {status:04X} {answer.get('ErrorComment', '')}".rstrip()


class Dicomweb:
    """A STOW-RS service.

    Parameters
    ----------
    url
        Base of the service, such as `https://pacs.example/dicom-web`.
    session
        Carries the credentials; None: there are none.

    Raises
    ------
    ValueError
        `url` is none, or holds credentials.
    """

    def __init__(self, url: str, session: Session | None = None) -> None:
        self._url = url
        self._client = dicomweb_client(url, session or Session())

    def store(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Deliver files in one request, or each in one of its own where that is refused."""
        datasets = {path: dcmread(path) for path in paths}
        try:
            answer = self._client.store_instances(list(datasets.values()))
        except HTTPError as error:
            if error.response is None or error.response.status_code not in REFUSALS:
                raise UnreachableError(f"{self._url}: {error}") from error
            if len(paths) == 1:
                return {paths[0]: f"{self._url}: {error}"}
            return {path: reason for one in paths for path, reason in self.store([one]).items()}
        except RequestException as error:
            raise UnreachableError(f"{self._url}: {error}") from error
        reasons = {
            str(failed.ReferencedSOPInstanceUID): int(failed.FailureReason)
            for failed in answer.get("FailedSOPSequence") or []
        }
        return {
            path: f"{self._url} answered reason {reason:04X}"
            for path, dataset in datasets.items()
            if (reason := reasons.get(str(dataset.SOPInstanceUID), SUCCESS)) not in (SUCCESS, DUPLICATE)
        }

    def __str__(self) -> str:
        return self._url
