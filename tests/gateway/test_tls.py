"""DICOM over TLS against other programs: dcmtk's storescu sends, Orthanc receives; certificates are made here."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from limner.gateway.destinations import Pacs, UnreachableError
from limner.gateway.journal import Journal
from limner.gateway.receiver import ListenSettings, Receiver, Tls
from tests.gateway.authority import Authority
from tests.gateway.orthanc import Orthanc
from tests.gateway.processes import send
from tests.gateway.real import needs_real
from tests.imaging.builders import mr_instance

pytestmark = needs_real


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Tls:
    return Tls(*authority.sign("gateway"), authority.certificate)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


@pytest.fixture
def receiver(journal: Journal, tls: Tls) -> Iterator[Receiver]:
    opened = Receiver(journal, ListenSettings(host="127.0.0.1", port=0, tls=tls))
    yield opened
    opened.close()


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    path = tmp_path / "instance.dcm"
    mr_instance(np.zeros((64, 64), np.uint16), StudyInstanceUID=generate_uid()).save_as(path, enforce_file_format=True)
    return path


def flags(certificate: Path, key: Path, authority: Authority) -> list[str]:
    return ["+tls", str(key), str(certificate), "+cf", str(authority.certificate)]


def test_storescu_sends_over_tls(receiver: Receiver, authority: Authority, journal: Journal, instance: Path) -> None:
    modality = flags(*authority.sign("modality"), authority)
    assert send(receiver.port, [instance], flags=modality) == 0
    assert journal.totals().instances == 1


def test_what_is_not_vouched_for_is_not_let_in(
    receiver: Receiver, authority: Authority, journal: Journal, instance: Path, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    assert send(receiver.port, [instance]) != 0
    assert send(receiver.port, [instance], flags=flags(*stranger.sign("modality"), authority)) != 0
    assert journal.totals().instances == 0


def test_who_connects_and_says_nothing_holds_up_nobody(
    receiver: Receiver, authority: Authority, instance: Path
) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port)):
        assert send(receiver.port, [instance], flags=flags(*authority.sign("modality"), authority)) == 0


def test_results_go_to_orthanc_over_tls(authority: Authority, tls: Tls, instance: Path, tmp_path: Path) -> None:
    certificate, key = authority.sign("pacs")
    with Orthanc(
        tmp_path / "orthanc",
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(certificate),
        DicomTlsPrivateKey=str(key),
        DicomTlsTrustedCertificates=str(authority.certificate),
    ) as pacs:
        destination = Pacs("ORTHANC", "127.0.0.1", pacs.dicom_port, tls=tls.client_context())
        assert destination.store([instance]) == {}
        assert len(pacs.instances()) == 1
        other = Authority(tmp_path / "other")
        suspicious = Tls(tls.certificate, tls.key, other.certificate)  # does not trust who signed Orthanc's
        with pytest.raises(UnreachableError):
            Pacs("ORTHANC", "127.0.0.1", pacs.dicom_port, tls=suspicious.client_context()).store([instance])
