"""The receiver, over real sockets: what it takes, what it refuses with which status, and who may come in."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, _config
from pynetdicom.association import Association

from limner.gateway.journal import Journal
from limner.gateway.limits import Limits, Peer
from limner.gateway.receiver import (
    MISMATCH,
    NOT_UNDERSTOOD,
    OUT_OF_RESOURCES,
    STORED_CLASSES,
    SUCCESS,
    ListenSettings,
    Receiver,
)
from tests.imaging.builders import mr_instance

Listen = Callable[..., AbstractContextManager[Receiver]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


@pytest.fixture
def listen(journal: Journal) -> Listen:
    """A receiver with these limits, for the length of a block."""

    @contextmanager
    def opened(keeper: Journal = journal, idle_s: float = 60, **limits: Any) -> Iterator[Receiver]:
        receiver = Receiver(keeper, ListenSettings(host="127.0.0.1", port=0, limits=Limits(**limits), idle_s=idle_s))
        try:
            yield receiver
        finally:
            receiver.close()

    return opened


def associate(receiver: Receiver, calling: str = "MODALITY") -> Association:
    node = AE(ae_title=calling)
    for storage_class in (*STORED_CLASSES, CTImageStorage):
        node.add_requested_context(storage_class, ExplicitVRLittleEndian)
    return node.associate("127.0.0.1", receiver.port, ae_title="LIMNER")


def instance(side: int = 8, **attributes: object) -> FileDataset:
    return mr_instance(np.zeros((side, side), np.uint16), **{"StudyInstanceUID": generate_uid(), **attributes})


def status(association: Association, dataset: FileDataset) -> int:
    return int(association.send_c_store(dataset).Status)


def test_success_is_answered_when_the_instance_is_in_the_journal(listen: Listen, journal: Journal) -> None:
    sent = instance()
    with listen() as receiver:
        association = associate(receiver)
        assert status(association, sent) == SUCCESS
        kept = journal.locate(sent.SOPInstanceUID)
        assert kept is not None
        assert sent.PixelData in kept.read_bytes()
        assert status(association, sent) == SUCCESS
        association.release()
    assert journal.totals().instances == 1


def test_an_instance_of_no_study_is_refused(listen: Listen, journal: Journal) -> None:
    with listen() as receiver:
        association = associate(receiver)
        for study in ("", "1.2/../../etc", "x"):
            assert status(association, instance(StudyInstanceUID=study)) == NOT_UNDERSTOOD
        assert status(association, instance()) == SUCCESS  # the association is as good as before
        association.release()
    assert journal.totals().instances == 1


def test_another_instance_than_the_request_names_is_refused(
    listen: Listen, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = instance()
    sent.SOPInstanceUID = generate_uid()  # the request names that of the file's header
    sent.save_as(tmp_path / "sent.dcm")
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    with listen() as receiver:
        association = associate(receiver)
        assert association.send_c_store(tmp_path / "sent.dcm").Status == MISMATCH
        association.release()
    assert journal.totals().instances == 0


def test_a_disk_that_is_full_enough_takes_nothing(listen: Listen, tmp_path: Path) -> None:
    full = Journal(tmp_path / "full", min_free_bytes=shutil.disk_usage(tmp_path).free + 2**30)
    with listen(full) as receiver:
        association = associate(receiver)
        assert status(association, instance()) == OUT_OF_RESOURCES
        association.release()
    full.close()


def test_other_classes_than_mr_are_not_negotiated(listen: Listen) -> None:
    with listen() as receiver:
        association = associate(receiver)
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        association.release()
    assert accepted == set(STORED_CLASSES)


def test_an_instance_that_is_too_large_is_refused_and_its_neighbours_are_not(listen: Listen, journal: Journal) -> None:
    with listen(instance_bytes=2**20) as receiver:
        association = associate(receiver)
        answers = [status(association, instance(side)) for side in (8, 2000, 600, 1200, 8)]
        association.release()
    assert answers == [SUCCESS, OUT_OF_RESOURCES, SUCCESS, OUT_OF_RESOURCES, SUCCESS]
    assert journal.totals().instances == 3


def test_only_peers_may_associate(listen: Listen) -> None:
    peers = (Peer("ANYWHERE"), Peer("HERE", "127.0.0.1"), Peer("NAMED", "localhost"), Peer("THERE", "192.0.2.1"))
    with listen(peers=peers) as receiver:
        for calling, welcome in (("ANYWHERE", True), ("HERE", True), ("NAMED", True), ("THERE", False), ("X", False)):
            association = associate(receiver, calling)
            assert (association.is_established, association.is_rejected) == (welcome, not welcome), calling
            association.release()


def test_a_peer_has_so_many_associations_and_leaves_room_for_others(listen: Listen) -> None:
    with listen(associations=4, peer_associations=2) as receiver:
        first, second, third = (associate(receiver, "GREEDY") for _ in range(3))
        assert [one.is_established for one in (first, second, third)] == [True, True, False]
        assert third.is_rejected
        other = associate(receiver, "OTHER")
        assert other.is_established
        first.release()
        assert within(5, lambda: associate(receiver, "GREEDY").is_established)
        for one in (second, other):
            one.release()


def within(limit_s: float, condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def test_a_peer_that_falls_silent_is_let_go(listen: Listen) -> None:
    with listen(idle_s=1, associations=2) as receiver:
        silent = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(2)]
        for one in silent:
            one.sendall(b"\x01\x00\x00")  # the first bytes of a request for an association
        assert within(10, lambda: associate(receiver).is_established)
        for one in silent:
            one.close()


def test_closing_ends_associations_that_are_open(listen: Listen) -> None:
    before = len(receiver_threads())
    with listen() as receiver:
        association = associate(receiver)
        assert association.is_established
        silent = socket.create_connection(("127.0.0.1", receiver.port))
        silent.sendall(b"\x01\x00\x00")
        assert within(5, lambda: len(receiver_threads()) == before + 2)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    # Such a thread would hold up the end of the process.
    assert within(
        5, lambda: all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate())
    )
    assert within(5, lambda: association.is_aborted)
    silent.close()


def receiver_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("AcceptorThread")]


@given(
    title=st.from_regex(r"[A-Z0-9_]{1,16}", fullmatch=True),
    host=st.sampled_from(["", "10.0.0.5", "ct1.example", "[::1]"]),
    port=st.integers(0, 65535),
)
def test_peers_are_read_as_they_are_written(title: str, host: str, port: int) -> None:
    address = (f"@{host}" + (f":{port}" if port else "")) if host else ""
    assert Peer.parse(title + address) == Peer(title, host.strip("[]"), port if host else 0)


@pytest.mark.parametrize(
    "text", ["", "@host", "A@", "A@host:", "A@host:0", "A@host:70000", "A@h:1:2", "A" * 17, "A@@h"]
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected AET, AET@HOST or AET@HOST:PORT"):
        Peer.parse(text)
