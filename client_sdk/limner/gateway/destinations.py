"""Where results go: to a PACS by C-STORE (PS3.4 annex B), or by STOW-RS (PS3.18 10.5)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from typing import Protocol

from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.presentation import build_context
from requests import HTTPError, RequestException, Session


class DestinationError(Exception):
    """A result was not taken: why, in a sentence. It may be taken later."""


class UnreachableError(DestinationError):
    """Nobody answered there."""


class Destination(Protocol):
    """Takes results."""

    def store(self, paths: Sequence[Path]) -> None:
        """Deliver DICOM files; returns once every one has been acknowledged.

        Raises
        ------
        DestinationError
            One was not. Those before it may have been.
        """
        ...


@dataclass(frozen=True)
class Pacs:
    """A storage provider.

    Attributes
    ----------
    ae_title, host, port
        Its name and address.
    calling
        AE title of this node.
    tls
        Of the connecting side; None: in the clear.
    """

    ae_title: str
    host: str
    port: int
    calling: str = "LIMNER"
    tls: SSLContext | None = None

    def store(self, paths: Sequence[Path]) -> None:
        """Deliver files in one association."""
        datasets = [dcmread(path) for path in paths]
        wanted = {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in datasets}
        node = AE(ae_title=self.calling)
        association = node.associate(
            self.host,
            self.port,
            contexts=[build_context(storage_class, syntax) for storage_class, syntax in sorted(wanted)],
            ae_title=self.ae_title,
            tls_args=(self.tls, self.host) if self.tls else None,
        )
        if not association.is_established:
            if association.is_rejected:
                raise DestinationError(f"{self} rejected the association; expected it to know {self.calling!r}")
            raise UnreachableError(f"{self} cannot be reached")
        try:
            for dataset in datasets:
                status = association.send_c_store(dataset)
                if "Status" not in status:
                    raise UnreachableError(f"{self} ended the association")
                if status.Status != 0x0000 and status.Status >> 12 != 0xB:  # B: a warning (PS3.4 B.2.3)
                    comment = status.get("ErrorComment", "")
                    raise DestinationError(f"{self} answered status {status.Status:04X} {comment}".rstrip())
        except ValueError as error:
            raise DestinationError(f"{self} takes no such object: {error}") from error
        finally:
            association.release()

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class Dicomweb:
    """A STOW-RS service.

    Attributes
    ----------
    url
        Base of the service, such as `https://pacs.example/dicom-web`.
    session
        Carries the credentials: basic by `session.auth`, a bearer token by its header.
    """

    url: str
    session: Session = field(default_factory=Session)

    def store(self, paths: Sequence[Path]) -> None:
        """Deliver files in one request."""
        try:
            answer = DICOMwebClient(self.url, session=self.session).store_instances([dcmread(path) for path in paths])
        except HTTPError as error:
            gone = error.response is None or error.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            raise (UnreachableError if gone else DestinationError)(f"{self.url}: {error}") from error
        except RequestException as error:
            raise UnreachableError(f"{self.url}: {error}") from error
        for failed in answer.get("FailedSOPSequence") or []:
            raise DestinationError(f"{self.url} answered reason {int(failed.FailureReason):04X}")

    def __str__(self) -> str:
        return self.url
