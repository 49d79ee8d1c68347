"""Storage commitment (PS3.4 annex J), the provider's side: a peer asks whether what it sent is kept, and is told.

The answer is found when it is asked for, and kept in the journal until the peer has taken it: on an association of ours
where the peer's port is known, else on the one that it asked by. A study all of whose instances are committed is
complete. What is committed is kept as long as any instance, which is not for ever: the gateway is no archive.
"""

import logging
import time
from collections.abc import Iterable
from ssl import SSLContext
from weakref import WeakValueDictionary

from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from limner.gateway.journal import Journal, is_uid
from limner.gateway.limits import Peer
from limner.gateway.peers import Node, PeerError
from limner.gateway.records import Commitment

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_ARGUMENT = 0x0114
NO_SUCH_ACTION = 0x0123
"""Statuses of N-ACTION (PS3.7 10.1.4.1.10)."""

NO_SUCH_INSTANCE = 0x0112
CLASS_CONFLICT = 0x0119
"""Reasons why an instance is not committed (PS3.3 C.14.1.1)."""

REQUEST = 1
ALL_HELD, SOME_FAILED = 1, 2
"""Types of the action, and of the event (PS3.4 J.3.2, J.3.3)."""

_log = logging.getLogger(__name__)


class CommitmentProvider:
    """Answers requests for storage commitment, and reports.

    Parameters
    ----------
    journal
        What it holds is committed.
    ae_title
        Of this node.
    peers
        Those with a port are reported to there.
    tls
        Of the connecting side; None: in the clear.
    keep_s
        After so long a report that nobody takes is dropped.
    """

    def __init__(
        self, journal: Journal, ae_title: str, peers: Iterable[Peer], tls: SSLContext | None, keep_s: float
    ) -> None:
        self._journal = journal
        self._ae_title = ae_title
        self._peers = {peer.ae_title: peer for peer in peers if peer.port}
        self._tls = tls
        self._keep_s = keep_s
        self._asked_by: WeakValueDictionary[str, Association] = WeakValueDictionary()

    def answer(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-ACTION (EVT_N_ACTION): success once what is to be reported is in the journal."""
        request = event.request
        assert isinstance(request, N_ACTION)  # noqa: S101 - what the handler is for
        if request.ActionTypeID != REQUEST:
            return NO_SUCH_ACTION, None
        peer = event.assoc.requestor.ae_title
        try:
            information = event.action_information
            uid = str(information.TransactionUID)
            references = [
                (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                for item in information.ReferencedSOPSequence
            ]
        except Exception as error:  # a corrupt byte may raise anything in the parser
            _log.warning("refused a storage commitment of %s: not readable: %s", peer, type(error).__name__)
            return NO_SUCH_ARGUMENT, None
        if not is_uid(uid) or not references:
            _log.warning("refused a storage commitment of %s: no transaction, or no instances", peer)
            return NO_SUCH_ARGUMENT, None
        try:
            commitment = self._examine(uid, peer, references)
            self._asked_by[uid] = event.assoc
            self._journal.commit(commitment)
        except OSError as error:
            _log.error("a storage commitment of %s cannot be kept: %s", peer, error.strerror or error)
            return PROCESSING_FAILURE, None
        _log.info("storage commitment of %s: %d held, %d not", peer, len(commitment.held), len(commitment.failed))
        return SUCCESS, None

    def _examine(self, uid: str, peer: str, references: Iterable[tuple[str, str]]) -> Commitment:
        held, failed = [], []
        for storage_class, instance in references:
            path = self._journal.locate(instance)
            if path is None:
                failed.append((storage_class, instance, NO_SUCH_INSTANCE))
            elif read_file_meta_info(path).MediaStorageSOPClassUID != storage_class:
                failed.append((storage_class, instance, CLASS_CONFLICT))
            else:
                held.append((storage_class, instance))
        return Commitment(uid, peer, held, failed, time.time())

    def report_due(self) -> None:
        """Report what is due; what is not taken is due again later, or dropped."""
        for commitment in self._journal.due_commitments():
            try:
                self._report(commitment)
            except Exception as error:  # one report must not stop the others
                reason = str(error) if isinstance(error, PeerError) else type(error).__name__
                if time.time() - commitment.received < self._keep_s:
                    pause_s = self._journal.postpone_report(commitment, reason)
                    _log.warning("a report to %s waits %.3g s: %s", commitment.peer, pause_s, reason)
                    continue
                _log.error("dropped a report to %s: %s", commitment.peer, reason)
            self._journal.drop_commitment(commitment)

    def _report(self, commitment: Commitment) -> None:
        peer = self._peers.get(commitment.peer)
        if peer is None:
            association = self._asked_by.get(commitment.uid)
            if association is None or not association.is_established:
                raise PeerError("the association that asked for it has ended; expected --peer AET@HOST:PORT")
            _deliver(association, commitment)
            return
        node = Node(peer.ae_title, peer.host, peer.port, self._ae_title, self._tls)
        service = StorageCommitmentPushModel
        with node.associate([build_context(service)], [build_role(service, scp_role=True)]) as association:
            _deliver(association, commitment)


def _deliver(association: Association, commitment: Commitment) -> None:
    report = Dataset()
    report.TransactionUID = commitment.uid
    if commitment.held:
        report.ReferencedSOPSequence = [_item(*reference) for reference in commitment.held]
    if commitment.failed:
        report.FailedSOPSequence = [_item(*reference) for reference in commitment.failed]
    try:
        status, _ = association.send_n_event_report(
            report,
            SOME_FAILED if commitment.failed else ALL_HELD,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
    except (RuntimeError, ValueError) as error:  # ended meanwhile; its role was not accepted
        raise PeerError(str(error)) from error
    if status.get("Status") != SUCCESS:
        told = f"{status.Status:04X}" if "Status" in status else "nothing"
        raise PeerError(f"{commitment.peer} answered {told}; expected 0000")


def _item(storage_class: str, instance: str, failure: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = storage_class
    item.ReferencedSOPInstanceUID = instance
    if failure is not None:
        item.FailureReason = failure
    return item
