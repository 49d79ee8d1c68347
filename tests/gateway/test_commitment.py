"""Storage commitment, asked for by pynetdicom on one association, and by Orthanc, which is told on another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom.dataset import FileDataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from limner.gateway.commitment import (
    CLASS_CONFLICT,
    NO_SUCH_ACTION,
    NO_SUCH_ARGUMENT,
    NO_SUCH_INSTANCE,
    SUCCESS,
    CommitmentProvider,
)
from limner.gateway.journal import Journal
from limner.gateway.limits import Peer
from limner.gateway.receiver import ListenSettings, Receiver
from limner.gateway.records import State
from tests.gateway.modality import Modality
from tests.gateway.orthanc import Orthanc
from tests.gateway.real import needs_real
from tests.gateway.waiting import wait_for
from tests.imaging.builders import mr_instance

LONG_S = 3600.0


class Node:
    """A receiver with storage commitment over a journal."""

    def __init__(self, journal: Journal, peers: Sequence[Peer] = ()) -> None:
        self.journal = journal
        self.provider = CommitmentProvider(journal, "LIMNER", peers, None, LONG_S)
        self._receiver = Receiver(journal, ListenSettings(host="127.0.0.1", port=0), self.provider.answer)
        self.port = self._receiver.port

    def close(self) -> None:
        self._receiver.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


@pytest.fixture
def node(journal: Journal) -> Iterator[Node]:
    opened = Node(journal)
    yield opened
    opened.close()


@pytest.fixture
def modality(node: Node) -> Iterator[Modality]:
    opened = Modality(node.port)
    yield opened
    opened.release()


def series(count: int = 3) -> list[FileDataset]:
    study = generate_uid()
    return [mr_instance(np.zeros((8, 8), np.uint16), StudyInstanceUID=study) for _ in range(count)]


def references(instances: Sequence[FileDataset]) -> list[tuple[str, str]]:
    return [(str(one.SOPClassUID), str(one.SOPInstanceUID)) for one in instances]


def test_a_study_that_is_committed_is_reported_and_complete_at_once(
    node: Node, modality: Modality, journal: Journal
) -> None:
    sent = series()
    modality.store(sent)
    assert journal.next_due(State.OPEN, LONG_S) is None
    assert modality.ask(references(sent)) == SUCCESS
    assert journal.next_due(State.OPEN, LONG_S)
    node.provider.report_due()
    ((event, report),) = modality.told
    assert event == 1
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [u for _, u in references(sent)]
    assert "FailedSOPSequence" not in report
    assert journal.commitments() == []


def test_what_is_not_held_is_reported_with_its_reason(node: Node, modality: Modality, journal: Journal) -> None:
    sent = series()
    modality.store(sent)
    asked = [*references(sent[:1]), (CTImageStorage, sent[1].SOPInstanceUID), (MRImageStorage, "1.2.3.4")]
    assert modality.ask(asked) == SUCCESS
    node.provider.report_due()
    ((event, report),) = modality.told
    assert event == 2
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [sent[0].SOPInstanceUID]
    failed = {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in report.FailedSOPSequence}
    assert failed == {sent[1].SOPInstanceUID: CLASS_CONFLICT, "1.2.3.4": NO_SUCH_INSTANCE}
    assert journal.next_due(State.OPEN, LONG_S) is None


def test_what_is_no_request_is_refused(modality: Modality, journal: Journal) -> None:
    assert modality.ask([(MRImageStorage, "1.2")], action=2) == NO_SUCH_ACTION
    assert modality.ask([]) == NO_SUCH_ARGUMENT
    assert modality.ask([(MRImageStorage, "1.2")], transaction="no UID") == NO_SUCH_ARGUMENT
    assert journal.commitments() == []


def test_a_report_waits_for_a_peer_that_has_gone(node: Node, journal: Journal) -> None:
    modality = Modality(node.port)
    sent = series()
    modality.store(sent)
    assert modality.ask(references(sent)) == SUCCESS
    modality.release()
    wait_for(lambda: not modality.association.is_established)
    node.provider.report_due()
    (waiting,) = journal.commitments()
    assert "expected --peer AET@HOST:PORT" in waiting.reason
    assert journal.due_commitments() == []
    assert journal.next_due(State.OPEN, LONG_S)


@needs_real
def test_orthanc_is_told_on_an_association_of_ours(journal: Journal, tmp_path: Path) -> None:
    with Orthanc(tmp_path / "orthanc") as pacs:
        node = Node(journal, [Peer("ORTHANC", "127.0.0.1", pacs.dicom_port)])
        here = {"AET": "LIMNER", "Host": "127.0.0.1", "Port": node.port, "AllowStorageCommitment": True}
        requests.put(f"{pacs.url}/modalities/limner", json=here, timeout=10).raise_for_status()
        sent = series()
        ids = []
        for one in sent:
            one.save_as(tmp_path / "one.dcm")
            answer = requests.post(f"{pacs.url}/instances", data=(tmp_path / "one.dcm").read_bytes(), timeout=10)
            ids.append(answer.json()["ID"])
        stored = requests.post(
            f"{pacs.url}/modalities/limner/store", json={"Resources": ids, "StorageCommitment": True}, timeout=30
        ).json()
        wait_for(lambda: bool(journal.commitments()))
        node.provider.report_due()
        assert journal.commitments() == []
        told = requests.get(f"{pacs.url}/storage-commitment/{stored['StorageCommitmentTransactionUID']}", timeout=10)
        assert told.json()["Status"] == "Success"
        assert len(told.json()["Success"]) == len(sent)
        assert journal.next_due(State.OPEN, LONG_S)
        node.close()
