"""Nothing that identifies a patient leaves the site: every byte between gateway or SDK and server is looked at.

The study is unmistakable, the gateway, the command and the server are the real ones, and what is looked for would be
found: the pixels are, and so is every name in a file that is sent as it is.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.transport import ThreadedAssociationServer

from benchmarks.models import publish_untrained
from limner import Client
from tests.gateway.processes import Gateway
from tests.gateway.waiting import wait_for
from tests.imaging.builders import AXES, mr_instance
from tests.live import LiveServer
from tests.recorder import Recorder

SLICES = 6
UIDS = ("1.2.826.0.1.999.11111", "1.2.826.0.1.999.22222", "1.2.826.0.1.999.33333", "1.2.826.0.1.999.44444")
STUDY_UID, SERIES_UID, INSTANCE_UID, FRAME_UID = UIDS
ATTRIBUTES = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": "Überschär^Zäzilie",
    "PatientID": "KENNUNG-4711-0815",
    "PatientBirthDate": "19331122",
    "PatientAge": "085Y",
    "StudyDate": "20190817",
    "StudyTime": "172359.123",
    "SeriesDate": "20190817",
    "AcquisitionTime": "172411.5",
    "AccessionNumber": "ACC-998877-X",
    "StudyID": "STUDY-5566",
    "InstitutionName": "Klinikum Unverwechselbar",
    "ReferringPhysicianName": "Weißbäcker^Ottokar",
    "OperatorsName": "Quandt^Philippa",
    "StationName": "TUNNEL-VII",
    "DeviceSerialNumber": "SN-31415926",
    "SeriesDescription": "t2_tse Frau Überschär",
    "StudyInstanceUID": STUDY_UID,
    "SeriesInstanceUID": SERIES_UID,
    "FrameOfReferenceUID": FRAME_UID,
}
SECRETS = {
    *(value for keyword, value in ATTRIBUTES.items() if keyword != "SpecificCharacterSet"),
    *UIDS,
    *("Überschär", "Zäzilie", "Weißbäcker", "Quandt"),
}


def found(content: bytes) -> set[str]:
    """Which of the names are in some bytes, in any usual coding."""
    return {name for name in SECRETS for coding in ("utf-8", "latin-1", "utf-16-le") if name.encode(coding) in content}


def write_study(folder: Path, **changes: object) -> list[Path]:
    """Write the study; each slice has pixels that are in nothing else."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(SLICES):
        pixels = np.random.default_rng(number).integers(0, 4096, (48, 48), np.uint16)
        values = {**ATTRIBUTES, "ImagePositionPatient": [0, 0, 3 * number], **changes}
        instance = mr_instance(pixels, **values)
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"{INSTANCE_UID}.{number}"
        paths.append(folder / f"{number}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return paths


class Pacs:
    """A storage provider that keeps what it is sent."""

    def __init__(self) -> None:
        self.stored: list[Dataset] = []
        node = AE(ae_title="PACS")
        node.supported_contexts = StoragePresentationContexts
        server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert isinstance(server, ThreadedAssociationServer)
        self._server = server
        self.port = int(server.server_address[1])

    def __enter__(self) -> "Pacs":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(event.dataset)
        return 0


def send(port: int, paths: list[Path]) -> None:
    """Send files as a modality does."""
    node = AE(ae_title="MODALITY")
    node.add_requested_context(MRImageStorage)
    association = node.associate("127.0.0.1", port, ae_title="LIMNER")
    assert [association.send_c_store(path).Status for path in paths] == [0] * len(paths)
    association.release()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server"), metrics_port=0, log_level="debug") as live:
        publish_untrained(live.model_repository, "model", size=32)
        yield live


@pytest.fixture
def wire(server: LiveServer) -> Iterator[Recorder]:
    with Recorder(server.address) as recorder:
        yield recorder


def assert_private(wire: Recorder, server: LiveServer, study: list[Path]) -> None:
    """Fail where a name passed the wire or is kept by the server; the pixels did pass, or nothing is proven."""
    messages = b"".join(wire.messages())
    for path in study:
        assert dcmread(path).PixelData in messages
    assert b"/limner.v1." in wire.content(), "headers can be read: they are not Huffman-coded"
    assert found(wire.content()) | found(messages) == set()
    kept = [path for path in server.folder.rglob("*") if path.is_file()]
    assert {"limner.sqlite", "server.log"} <= {path.name for path in kept}
    assert [path for path in kept if found(path.read_bytes()) or found(str(path).encode())] == []
    with triton.InferenceServerClient(server.address) as client:
        told = client.get_inference_statistics(as_json=True), client.get_model_repository_index(as_json=True)
    assert found(str(told).encode()) == set()
    assert found(server.metrics().encode()) == set()


def test_the_gateway_sends_pixels_and_takes_the_names_from_its_own_copy(
    wire: Recorder, server: LiveServer, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study")
    corrupt = dcmread(study[-1])
    corrupt.PixelData = corrupt.PixelData[:100]
    corrupt.save_as(study[-1])
    with Pacs() as pacs:
        flags = (f"--server={wire.address}", f"--pacs=PACS@127.0.0.1:{pacs.port}")
        with Gateway(tmp_path / "journal", *flags) as gateway:
            send(gateway.port, study)
            wait_for(lambda: bool(pacs.stored))
    for result in pacs.stored:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
            assert str(result[keyword].value) == ATTRIBUTES[keyword]
    assert_private(wire, server, study[:-1])
    log = gateway.log_file.read_bytes()
    assert b"scored" in log
    assert found(log) == set()


def test_what_goes_wrong_is_logged_without_names(server: LiveServer, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    with Pacs() as pacs:
        closed = pacs.port
    flags = (f"--server={server.address}", f"--pacs=PACS@127.0.0.1:{closed}")
    with Gateway(tmp_path / "journal", *flags) as gateway:
        log = gateway.log_file
        send(gateway.port, study)
        wait_for(lambda: b" waits " in log.read_bytes())
        for kept in (tmp_path / "journal" / "results").iterdir():
            kept.unlink()
        wait_for(lambda: bool(re.search(rb"No such file|FileNotFoundError", log.read_bytes())))
    assert found(log.read_bytes()) == set()


def limner(*arguments: object) -> None:
    command = [sys.executable, "-m", "limner.cli.main", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("flags", [(), ("--send-dicom",)], ids=["pixels", "whole files"])
def test_predict_sends_no_name(wire: Recorder, server: LiveServer, tmp_path: Path, flags: tuple[str, ...]) -> None:
    study = write_study(tmp_path / "Überschär")
    limner("predict", "model", tmp_path / "Überschär", "--server", wire.address, *flags)
    assert_private(wire, server, study)


def test_an_import_sends_no_name(wire: Recorder, server: LiveServer, tmp_path: Path) -> None:
    study = write_study(tmp_path / "in" / "Überschär")
    other = {"SeriesInstanceUID": f"{SERIES_UID}.9", "ImageOrientationPatient": AXES["sagittal"]}
    for path in write_study(tmp_path / "in" / "sagittal", **other):
        dataset = dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.9"
        dataset.save_as(path)
    (tmp_path / "rules.yaml").write_text("modality: [MR]")
    limner(
        *("cohort", "import", tmp_path / "in", "--name", "planes", "--label-by", "plane"),
        *("--key", tmp_path / "key", "--rules", tmp_path / "rules.yaml", "--server", wire.address),
    )
    with Client(server.address) as client:
        assert client.cohort("planes").slices == 2 * SLICES
    assert_private(wire, server, study)


def test_what_is_looked_for_would_be_found(wire: Recorder, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    with Client(wire.address) as client:
        (result,) = client.predict("model", study[:1], send_dicom="identified").results
    assert result.ok
    assert found(b"".join(wire.messages())) == SECRETS
