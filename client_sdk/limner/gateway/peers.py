"""Other nodes, in either direction: their addresses, how DIMSE and DICOMweb reach them, and how that fails."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from ssl import SSLContext
from typing import Self
from urllib.parse import quote, urlsplit

from dicomweb_client.api import DICOMwebClient
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from requests import HTTPError, PreparedRequest, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

TOKEN, USER, PASSWORD = "LIMNER_DICOMWEB_TOKEN", "LIMNER_DICOMWEB_USER", "LIMNER_DICOMWEB_PASSWORD"
"""Environment variables of the credentials; the token wins."""

CONNECT_S = 10.0
PDU_BYTES = 131072
"""Longest PDU that peers may send: the longest that dcmtk does."""
LONGEST_RETRY_AFTER_S = 60
_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")  # ASCII but for the backslash
_OVERLOADED = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class PeerError(Exception):
    """Another node did not do what it was asked: why, in a sentence. It may do it later."""


class UnreachableError(PeerError):
    """Nobody does anything there now: no answer, no association, no room. It says nothing of what was asked."""


class UnwellError(UnreachableError):
    """It answered that it is overloaded, or a proxy answered in its place: perhaps of this request only."""


class RefusedError(PeerError):
    """It does not know us, or not our credentials: asking for something else is of no use."""


class UnsupportedError(RefusedError):
    """It knows nothing of the service."""


def is_of_one_request(error: PeerError) -> bool:
    """Whether another request may be answered."""
    return isinstance(error, UnwellError) or not isinstance(error, UnreachableError | RefusedError)


def checked_title(text: str) -> str:
    """Return an AE title without the spaces around it, which mean nothing (PS3.5 6.2). ValueError where it is none."""
    title = text.strip(" ")
    if not _AE_TITLE.fullmatch(title):
        raise ValueError(f"{text!r} is no AE title; expected 1 to 16 ASCII characters and no backslash")
    return title


@dataclass(frozen=True)
class Node:
    """A node that speaks DIMSE.

    Attributes
    ----------
    ae_title, host, port
        Its name and address.
    calling
        AE title of this node.
    tls
        Of the connecting side; None: in the clear.
    timeout_s
        How long an answer may take.
    """

    ae_title: str
    host: str
    port: int
    calling: str = "LIMNER"
    tls: SSLContext | None = None
    timeout_s: float = 60.0

    @classmethod
    def parse(cls, text: str, calling: str, tls: SSLContext | None, timeout_s: float = 60.0) -> Self:
        """Return the node of `AET@HOST:PORT`. ValueError where it is none."""
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        if not (title and host and port.isdecimal() and int(port) in range(1, 2**16)):
            raise ValueError(f"{text!r}; expected AET@HOST:PORT, a port from 1 to 65535")
        return cls(checked_title(title), host.strip("[]"), int(port), calling, tls, timeout_s)

    @contextmanager
    def associate(
        self,
        contexts: Sequence[PresentationContext],
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[EventHandlerType] = (),
    ) -> Iterator[Association]:
        """Open an association, and release it at the end.

        Raises
        ------
        UnreachableError
            Nobody answers there.
        RefusedError
            It does not want to talk to us, or not of this.
        """
        entity = AE(ae_title=self.calling)
        entity.connection_timeout, entity.maximum_pdu_size = CONNECT_S, PDU_BYTES
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_s
        association = entity.associate(
            self.host,
            self.port,
            contexts=list(contexts),
            ae_title=self.ae_title,
            ext_neg=list(roles),
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once), *handlers],
            tls_args=(self.tls, self.host) if self.tls else None,
        )
        if not association.is_established:
            if association.is_rejected:
                raise RefusedError(f"{self} rejected the association; expected it to know {self.calling!r}")
            if association.rejected_contexts:
                names = ", ".join(sorted({str(one.abstract_syntax and one.abstract_syntax.name) for one in contexts}))
                raise UnsupportedError(f"{self} takes no {names}")
            raise UnreachableError(f"{self} cannot be reached")
        try:
            yield association
        finally:
            association.release()

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


def _send_at_once(event: evt.Event) -> None:
    """Have a query not wait for 40 ms, until the peer acknowledges what was sent before it (EVT_CONN_OPEN)."""
    connection = event.assoc.dul.socket
    if connection and connection.socket:
        connection.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


def http_session(
    environment: Mapping[str, str] = os.environ,
    *,
    ca: Path | None = None,
    certificate: tuple[Path, Path] | None = None,
    retries: int = 0,
) -> Session:
    """Return a session with the credentials that the environment holds.

    Parameters
    ----------
    environment
        `LIMNER_DICOMWEB_TOKEN` (bearer), or `LIMNER_DICOMWEB_USER` and `LIMNER_DICOMWEB_PASSWORD` (basic).
    ca
        Whose signature the server's certificate must bear; None: one of the usual authorities.
    certificate
        Our own, with its key, for a server that asks for one.
    retries
        How often a GET is repeated, with growing pauses or after the server's Retry-After, where it is overloaded.
    """
    session = Session()
    if token := environment.get(TOKEN):
        session.auth = _Bearer(token)
    elif user := environment.get(USER):
        session.auth = (user, environment.get(PASSWORD, ""))
    if certificate:
        session.cert = (str(certificate[0]), str(certificate[1]))
    overloaded = Retry(
        total=retries,
        connect=0,
        read=0,
        other=0,
        allowed_methods=["GET"],
        status_forcelist=_OVERLOADED,
        backoff_factor=0.5,
        retry_after_max=LONGEST_RETRY_AFTER_S,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(ca, overloaded))
    return session


def dicomweb_client(url: str, session: Session, timeout_s: float = 60.0) -> DICOMwebClient:
    """Return a client that does not repeat requests by itself: it would do so whatever went wrong, for half a minute.

    Raises
    ------
    ValueError
        `url` is none, or holds credentials, which would end up in logs.
    """
    if "@" in (url.partition("://")[2] or url).partition("/")[0]:  # also where it is no URL, and would be quoted
        raise ValueError(f"credentials in the URL; expected them in {TOKEN}, or in {USER} and {PASSWORD}")
    if not _is_base(url):
        raise ValueError(f"{url!r}; expected http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")
    client = DICOMwebClient(url, session=session, permissive_uid=True, timeout=(CONNECT_S, timeout_s))
    client.set_http_retry_params(retry=False)
    return client


def _is_base(url: str) -> bool:
    """Whether a path can be appended to a URL so that something may answer there."""
    try:
        parts = urlsplit(url)
        has_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        return False
    is_whole = not (parts.query or parts.fragment or re.search(r"\s", url))
    return parts.scheme in ("http", "https") and has_place and is_whole


@contextmanager
def http_errors(url: str) -> Iterator[None]:
    """Translate what goes wrong with a request, and tell `url` of it: its whole address may name a patient.

    Raises
    ------
    UnreachableError
        No answer; UnwellError where it says that the server is overloaded.
    RefusedError
        It does not know the credentials.
    PeerError
        It refused this request, or failed on it.
    """
    try:
        yield
    except HTTPError as error:
        raise _refusal(url, error.response) from error
    except RequestException as error:
        raise UnreachableError(f"no answer from {url}: {_cause(error)}") from error


def _refusal(url: str, answer: Response | None) -> PeerError:
    if answer is None:
        return UnreachableError(f"no answer from {url}")
    told = f"{url} answered {answer.status_code} {answer.reason}"
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return RefusedError(f"{told}; expected credentials that it knows in {TOKEN}, or in {USER} and {PASSWORD}")
    if answer.status_code in _OVERLOADED:
        return UnwellError(told)
    return PeerError(told)


def _cause(error: BaseException) -> str:
    """Return what is at the root of an error of requests, which wraps those of urllib3, which wraps the system's."""
    reason = getattr(error, "reason", None)
    inner = reason or next((one for one in error.args if isinstance(one, BaseException)), None)
    if isinstance(inner, BaseException):
        return _cause(inner)
    return str(error.args[-1]) if error.args else type(error).__name__


class _Bearer(AuthBase):
    """As an authentication, not as a header: a header gives way to what .netrc has for the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Adapter(HTTPAdapter):
    """Sends queries as a browser would, and checks certificates against `ca`.

    Orthanc (1.10 at least) does not decode a query: `PatientName=Doe%2A` finds nobody. REQUESTS_CA_BUNDLE, where it is
    set, would win over `Session.verify`.
    """

    def __init__(self, ca: Path | None, retry: Retry) -> None:
        self._ca = ca
        super().__init__(max_retries=retry)

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> Response:
        address, mark, query = (request.url or "").partition("?")
        for character in "*?^":
            query = query.replace(quote(character), character)
        request.url = address + mark + query
        return super().send(request, stream, timeout, str(self._ca) if self._ca else verify, cert, proxies)
