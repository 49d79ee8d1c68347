"""The receiving side: a C-STORE and C-ECHO provider (PS3.4 annexes A and B) that acknowledges what the journal keeps.

Looks into an instance no further than it takes to tell where it belongs: what cannot be scored is found out later,
and named then.
"""

import errno
import logging
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext, TLSVersion, VerifyMode, create_default_context

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
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
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported
from pynetdicom.transport import ThreadedAssociationServer

from limner.gateway.journal import Journal

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_COMPRESSED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K, RLELossless),
)
STORED_CLASSES = (MRImageStorage, EnhancedMRImageStorage)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
NOT_UNDERSTOOD = 0xC000
"""Statuses of C-STORE (PS3.4 B.2.3)."""

_log = logging.getLogger(__name__)


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
        context = SSLContext(PROTOCOL_TLS_SERVER)
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
    peers
        AE titles that may send; empty: any.
    associations
        Associations at a time, of all peers.
    tls
        None: in the clear.
    """

    ae_title: str = "LIMNER"
    host: str = "0.0.0.0"  # noqa: S104 - a modality calls from elsewhere
    port: int = 11112
    peers: frozenset[str] = field(default_factory=frozenset)
    associations: int = 16
    tls: Tls | None = None


class Receiver:
    """Listens until it is closed.

    Raises
    ------
    OSError
        The port is taken, or the address not here.
    """

    def __init__(self, journal: Journal, settings: ListenSettings) -> None:
        self._journal = journal
        node = AE(ae_title=settings.ae_title)
        node.require_called_aet = True
        node.require_calling_aet = sorted(settings.peers)
        node.maximum_associations = settings.associations
        node.add_supported_context(Verification)
        for storage_class in STORED_CLASSES:
            node.add_supported_context(storage_class, transfer_syntaxes())
        server = node.start_server(
            (settings.host, settings.port),
            block=False,
            ssl_context=settings.tls.server_context() if settings.tls else None,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_REJECTED, _log_rejection)],
        )
        assert isinstance(server, ThreadedAssociationServer)  # noqa: S101 - it does not block
        self._server = server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End every association and close the port; a sender knows by the missing answer what it has to send again."""
        self._server.shutdown()

    def _store(self, event: evt.Event) -> Dataset | int:
        """Answer a C-STORE: success once the instance is on the disk."""
        peer = event.assoc.requestor.ae_title
        try:
            content = event.encoded_dataset()
            header = dcmread(
                BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID", "StudyInstanceUID"]
            )
            uid, study = str(header.get("SOPInstanceUID") or ""), str(header.get("StudyInstanceUID") or "")
        except Exception as error:  # a corrupt byte may raise anything in the parser
            return _refusal(NOT_UNDERSTOOD, peer, f"not readable: {type(error).__name__}")
        request = event.request
        assert isinstance(request, C_STORE)  # noqa: S101 - what the handler is for
        if uid != request.AffectedSOPInstanceUID:
            return _refusal(MISMATCH, peer, "SOPInstanceUID is not that of the request")
        try:
            self._journal.receive(uid, study, peer, content)
        except ValueError as error:
            return _refusal(NOT_UNDERSTOOD, peer, str(error))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return _refusal(OUT_OF_RESOURCES, peer, "the disk is full")
            return _refusal(OUT_OF_RESOURCES, peer, f"cannot be kept: {error.strerror}")
        return SUCCESS


def transfer_syntaxes() -> list[UID]:
    """Return the transfer syntaxes that an installed decoder reads, the uncompressed ones first."""
    return [*_PLAIN, *(syntax for syntax in _COMPRESSED if get_decoder(syntax).is_available)]


def _refusal(status: int, peer: str, reason: str) -> Dataset:
    _log.warning("refused an instance of %s: %s", peer, reason)
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason[:64]  # LO (PS3.5 6.2)
    return answer


def _log_rejection(event: evt.Event) -> None:
    requestor = event.assoc.requestor
    _log.warning("rejected an association of %s at %s", requestor.ae_title, requestor.address)
