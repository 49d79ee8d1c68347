"""What a peer may take of the node: who may associate, how often at a time, and how large an instance may be."""

import logging
import re
import socket
from dataclasses import dataclass
from typing import Self
from weakref import WeakSet

from pynetdicom import evt
from pynetdicom.association import Association

# Result, source and reason of a rejection (PS3.8 9.3.4).
_STRANGER = (0x01, 0x01, 0x03)
_TOO_MANY = (0x02, 0x03, 0x02)

_PEER = re.compile(r"(?P<title>[^@]{0,15}[^@ ])(@(?P<host>\[[^][@]+\]|[^][@:]+)(:(?P<port>[0-9]{1,5}))?)?")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peer:
    """A node that may send.

    Attributes
    ----------
    ae_title
        1 to 16 characters.
    host
        Name or address that it calls from; empty: any.
    port
        Where it takes reports of storage commitment; 0: on the association by which it asks.
    """

    ae_title: str
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the peer of `AET[@HOST[:PORT]]`. ValueError where it is none."""
        found = _PEER.fullmatch(text)
        if not found or int(found["port"] or 1) not in range(1, 2**16):
            raise ValueError(f"{text!r}; expected AET, AET@HOST or AET@HOST:PORT")
        return cls(found["title"].strip(), (found["host"] or "").strip("[]"), int(found["port"] or 0))

    def calls_from(self, address: str) -> bool:
        """Whether an association from an IP address may be this peer's; a name is looked up each time."""
        if not self.host:
            return True
        try:
            return address in {str(place[0]) for *_, place in socket.getaddrinfo(self.host, None)}
        except OSError as error:
            _log.warning("%s, the host of peer %s, is not known: %s", self.host, self.ae_title, error)
            return False


@dataclass(frozen=True)
class Limits:
    """What the node gives.

    Attributes
    ----------
    peers
        Who may associate; empty: anyone.
    associations, peer_associations
        At a time, of all peers together and of one AE title at one address.
    instance_bytes
        Of the largest instance that is taken.
    """

    peers: tuple[Peer, ...] = ()
    associations: int = 32
    peer_associations: int = 16
    instance_bytes: int = 512 * 2**20


class Doorkeeper:
    """Holds peers to the limits; its methods are handlers of events of an association."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._too_large: WeakSet[Association] = WeakSet()

    def admit(self, event: evt.Event) -> None:
        """Reject an association that was asked for by a stranger, or by a peer that has too many (EVT_REQUESTED)."""
        association = event.assoc
        try:
            rejection = self._rejection(association)
        except Exception:  # pynetdicom would log it and let the peer in
            _log.exception("rejected an association for a reason of ours")
            rejection = _STRANGER
        if rejection:
            association.acse.send_reject(*rejection)
            association.kill()  # once the rejection is sent

    def _rejection(self, association: Association) -> tuple[int, int, int] | None:
        caller = _caller(association)
        title, address = caller
        limits = self._limits
        if limits.peers and not any(peer.ae_title == title and peer.calls_from(address) for peer in limits.peers):
            _log.warning("rejected an association of %s at %s: no peer of ours", title, address)
            return _STRANGER
        present = [other for other in association.ae.active_associations if other.is_acceptor]
        if sum(_caller(other) == caller for other in present) > limits.peer_associations:
            _log.warning("rejected an association of %s at %s: it has too many", title, address)
            return _TOO_MANY
        return None

    def weigh(self, event: evt.Event) -> None:
        """Drop what has come of a message that grows too large, so that it takes no memory (EVT_PDU_RECV)."""
        message = event.assoc.dimse.message
        come = message.data_set if message else None
        if come and come.tell() > self._limits.instance_bytes:
            come.seek(0)
            come.truncate()
            self._too_large.add(event.assoc)

    def was_too_large(self, association: Association) -> bool:
        """Whether the message that has just come was dropped; asked once for each."""
        too_large = association in self._too_large
        self._too_large.discard(association)
        return too_large


def _caller(association: Association) -> tuple[str, str]:
    """Return the AE title and address of who asks or asked for an association."""
    requestor = association.requestor
    title = requestor.primitive.calling_ae_title if requestor.primitive else ""
    return str(title).strip(), str(requestor.address)
