"""The receiving side: a C-STORE and C-ECHO provider (PS3.4 annexes A and B) that acknowledges what the journal keeps.

Looks into an instance no further than it takes to tell where it belongs: what cannot be scored is found out later,
and named then.
"""

import errno
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RD, socket
from ssl import PROTOCOL_TLS_SERVER, SSLContext, SSLSocket, TLSVersion, VerifyMode, create_default_context
from typing import Any, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from limner.gateway.limits import Doorkeeper, Limits
from limner.imaging.dicom import can_decode
from limner.imaging.errors import ImageError
from limner.imaging.headers import read_header, value_of

# It would write down every message, which names UIDs.
_config.LOG_HANDLER_LEVEL = "none"

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_COMPRESSED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K, RLELossless),
)
_LOOKED_AT = ("SOPInstanceUID", "StudyInstanceUID")
STORED_CLASSES = (MRImageStorage, EnhancedMRImageStorage)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
NOT_UNDERSTOOD = 0xC000
"""Statuses of C-STORE (PS3.4 B.2.3)."""

_log = logging.getLogger(__name__)


class _PatientContext(SSLContext):
    """Leaves the handshake to the first read, which is in a thread of the association: pynetdicom would wait for it."""

    def wrap_socket(self, sock: socket, *args: Any, **options: Any) -> SSLSocket:
        return super().wrap_socket(sock, *args, **{**options, "do_handshake_on_connect": False})


@dataclass(frozen=True)
class Tls:
    """DICOM over TLS (PS3.15 B.12): the node's own certificate and key, and whose signature a peer's must bear.

    Without `ca` any peer may connect.
    """

    certificate: Path
    key: Path
    ca: Path | None = None

    def server_context(self) -> SSLContext:
        """Return the context of the listening side, TLS 1.2 at least."""
        context = _PatientContext(PROTOCOL_TLS_SERVER)
        context.minimum_version = TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.ca:
            context.load_verify_locations(self.ca)
            context.verify_mode = VerifyMode.CERT_REQUIRED
        return context

    def client_context(self) -> SSLContext:
        """Return the context of the connecting side; without `ca`, the system's authorities vouch for the peer."""
        context = create_default_context(cafile=self.ca)
        context.minimum_version = TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class ListenSettings:
    """Where to listen, and to whom.

    Attributes
    ----------
    ae_title
        Of this node, 1 to 16 characters; a peer that calls another one is refused.
    host, port
        Address; port 0 takes a free one.
    limits
        Who may send, and how much.
    tls
        None: in the clear.
    idle_s
        A peer that says nothing for so long is taken to be gone.
    """

    ae_title: str = "LIMNER"
    host: str = "0.0.0.0"  # noqa: S104 - a modality calls from elsewhere
    port: int = 11112
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None
    idle_s: float = 60.0


class Keeper(Protocol):
    """Keeps instances: the journal does, and a pull what it asked for."""

    def receive(self, uid: str, study: str, peer: str, content: bytes) -> bool:
        """Keep an instance for good; return False where it is here already, and nothing changes.

        Raises
        ------
        ValueError
            A UID is none, or not asked for.
        OSError
            It cannot be written.
        """
        ...


class Receiver:
    """Listens until it is closed.

    Parameters
    ----------
    keeper
        What is acknowledged is kept there.
    commitment
        Answers the requests for storage commitment (EVT_N_ACTION); None: the service is not offered.
    storage_classes
        SOP classes that are taken.

    Raises
    ------
    OSError
        The port is taken, or the address not here.
    """

    def __init__(
        self,
        keeper: Keeper,
        settings: ListenSettings,
        commitment: Callable[[evt.Event], tuple[int, Dataset | None]] | None = None,
        storage_classes: Iterable[str] = STORED_CLASSES,
    ) -> None:
        self._keeper = keeper
        self._settings = settings
        self._doorkeeper = Doorkeeper(settings.limits)
        node = AE(ae_title=settings.ae_title)
        node.require_called_aet = True
        node.maximum_associations = settings.limits.associations
        node.network_timeout = node.acse_timeout = settings.idle_s
        node.add_supported_context(Verification)
        for storage_class in storage_classes:
            node.add_supported_context(storage_class, transfer_syntaxes())
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._limit_silence),
            (evt.EVT_REQUESTED, self._doorkeeper.admit),
            (evt.EVT_REJECTED, _log_rejection),
            (evt.EVT_PDU_RECV, self._doorkeeper.weigh),
            (evt.EVT_C_STORE, self._store),
        ]
        if commitment:
            node.add_supported_context(StorageCommitmentPushModel)
            handlers.append((evt.EVT_N_ACTION, commitment))
        tls = settings.tls.server_context() if settings.tls else None
        try:
            server = node.start_server(
                (settings.host, settings.port), block=False, ssl_context=tls, evt_handlers=handlers
            )
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        assert isinstance(server, ThreadedAssociationServer)  # noqa: S101 - it does not block
        self._node = node
        self._server = server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End every association and close the port; a sender knows by the missing answer what it has to send again."""
        self._server.shutdown()
        for association in self._node.active_associations:
            if connection := _connection(association):
                with suppress(OSError):
                    connection.shutdown(SHUT_RD)  # a thread in the middle of reading would be waited for
            if association.is_established:
                association.abort()
            else:
                association.kill()

    def _limit_silence(self, event: evt.Event) -> None:
        """Have reading end where a peer stops in the middle of a PDU, or of the handshake (EVT_CONN_OPEN)."""
        if connection := _connection(event.assoc):
            connection.settimeout(self._settings.idle_s)

    def _store(self, event: evt.Event) -> Dataset | int:
        if self._doorkeeper.was_too_large(event.assoc):
            most = f"{self._settings.limits.instance_bytes / 2**20:.4g} MiB"
            return _refusal(OUT_OF_RESOURCES, event.assoc.requestor.ae_title, f"larger than {most}")
        return answer_store(event, self._keeper)


def answer_store(event: evt.Event, keeper: Keeper) -> Dataset | int:
    """Answer a C-STORE: success once the instance is on the disk."""
    association = event.assoc
    sender = association.acceptor if association.is_requestor else association.requestor  # the former by C-GET
    peer = sender.ae_title
    try:
        content = event.encoded_dataset()
        header = read_header(content, only=_LOOKED_AT)
        uid, study = (str(value_of(header, keyword) or "") for keyword in _LOOKED_AT)
    except ImageError as error:
        return _refusal(NOT_UNDERSTOOD, peer, str(error), f"{error.field} is not what it has to be")
    request = event.request
    assert isinstance(request, C_STORE)  # noqa: S101 - what the handler is for
    if uid != request.AffectedSOPInstanceUID:
        return _refusal(MISMATCH, peer, "SOPInstanceUID is not that of the request")
    try:
        keeper.receive(uid, study, peer, content)
    except ValueError:
        return _refusal(NOT_UNDERSTOOD, peer, "StudyInstanceUID or SOPInstanceUID is no UID, or not asked for")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refusal(OUT_OF_RESOURCES, peer, "the disk is full")
        return _refusal(OUT_OF_RESOURCES, peer, f"cannot be kept: {error.strerror or error}")
    return SUCCESS


def transfer_syntaxes() -> list[UID]:
    """Return the transfer syntaxes that an installed decoder reads, the uncompressed ones first."""
    return [*_PLAIN, *(syntax for syntax in _COMPRESSED if can_decode(syntax))]


def _refusal(status: int, peer: str, reason: str, logged: str = "") -> Dataset:
    """Refuse an instance; `logged` where the reason quotes what came, which is the sender's to know."""
    _log.warning("refused an instance of %s: %s", peer, logged or reason)
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason[:64]  # LO (PS3.5 6.2)
    return answer


def _connection(association: Association) -> socket | None:
    transport = association.dul.socket
    return transport.socket if transport else None


def _log_rejection(event: evt.Event) -> None:
    requestor = event.assoc.requestor
    _log.warning("rejected an association of %s at %s", requestor.ae_title, requestor.address)
