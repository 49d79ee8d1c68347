"""A modality, the gateway, a server and a PACS, all of them real: nothing is lost, nothing is sent twice."""

import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from highdicom.sr import Comprehensive3DSR, srread
from highdicom.sr.utils import find_content_items
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage, generate_uid

from benchmarks.models import publish_untrained
from limner import Client
from tests.gateway.orthanc import Orthanc
from tests.gateway.processes import Gateway, send
from tests.gateway.real import needs_real
from tests.gateway.waiting import wait_for
from tests.imaging.builders import mr_instance
from tests.imaging.conformance import assert_valid_dicom
from tests.live import LiveServer

pytestmark = needs_real


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as live:
        publish_untrained(live.model_repository, "model", size=32)
        yield live


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc") as orthanc:
        yield orthanc


@pytest.fixture(params=["pacs", "stow"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path, server: LiveServer, pacs: Orthanc) -> Iterator[Gateway]:
    flag = f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}"
    if request.param == "stow":
        flag = f"--stow={pacs.url}/dicom-web"
    with Gateway(tmp_path / "journal", f"--server={server.address}", flag) as node:
        yield node


def reports(pacs: Orthanc) -> list[Comprehensive3DSR]:
    """Every structured report in a PACS."""
    found = pacs.instances(SOPClassUID=Comprehensive3DSRStorage)
    return [srread(BytesIO(pacs.file(str(one["ID"])))) for one in found]


def phantom_series(folder: Path, slices: int = 5, **attributes: object) -> list[Path]:
    """A small T2 series of a study of its own."""
    study, series = generate_uid(), generate_uid()
    paths = []
    for index in range(slices):
        pixels = np.random.default_rng(index).integers(0, 1000, (40, 40), np.uint16)
        instance = mr_instance(
            pixels, StudyInstanceUID=study, SeriesInstanceUID=series, ImagePositionPatient=[0, 0, index], **attributes
        )
        paths.append(folder / f"{instance.SOPInstanceUID}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_a_series_comes_back_as_a_report_of_what_predict_says(
    gateway: Gateway, pacs: Orthanc, server: LiveServer, tmp_path: Path
) -> None:
    sent = phantom_series(tmp_path, PatientName="Doe^Jane", PatientID="P-1")
    assert send(gateway.port, sent) == 0
    wait_for(lambda: bool(reports(pacs)))
    (report,) = reports(pacs)
    with Client(server.address) as client:
        stream = client.predict_stream("model", [dcmread(path) for path in sent])
        results = list(stream)
        assert stream.model is not None
    first = dcmread(sent[0])
    assert (report.PatientName, report.PatientID) == ("Doe^Jane", "P-1")
    assert report.StudyInstanceUID == first.StudyInstanceUID
    (group,) = report.content.get_image_measurement_groups()
    figures = {one.name.meaning: one.value for one in group.get_measurements()}
    mean = np.mean([result.prediction.logits for result in results if result.prediction], axis=0)
    expected = np.exp(mean) / np.exp(mean).sum()
    assert figures["Probability"] == pytest.approx(expected[1], abs=1e-4)  # of the last label
    assert figures["Slices scored"] == 5
    text = report.to_json()
    assert stream.model.digest in text
    assert "RESEARCH USE ONLY" in text
    assert {item.referenced_sop_instance_uid for item in group.source_images} == {path.stem for path in sent}
    (kept,) = pacs.instances(SOPClassUID=Comprehensive3DSRStorage)
    (tmp_path / "report.dcm").write_bytes(pacs.file(str(kept["ID"])))
    assert_valid_dicom(tmp_path / "report.dcm")
    wait_for(lambda: gateway.status()["studies"] == {"open": 0, "scored": 0, "done": 1, "dead": 0})


def test_heat_maps_come_back_where_they_are_asked_for(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    flags = [f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}"]
    flags += [f"--send={kind}" for kind in ("report", "heat-map", "picture")]
    sent = phantom_series(tmp_path, FrameOfReferenceUID=generate_uid())
    with Gateway(tmp_path / "journal", *flags) as gateway:
        assert send(gateway.port, sent) == 0
        wait_for(lambda: gateway.status()["studies"]["done"] == 1)  # type: ignore[index]
    kept = [dcmread(BytesIO(pacs.file(str(one["ID"])))) for one in pacs.instances()]
    assert sorted(one.SOPClassUID.name for one in kept) == [
        "Comprehensive 3D SR Storage",
        "Parametric Map Storage",
        *["Secondary Capture Image Storage"] * 3,
    ]
    (report,) = reports(pacs)
    others = {one.SOPInstanceUID for one in kept} - {report.SOPInstanceUID}
    (group,) = report.content.get_image_measurement_groups()
    images = find_content_items(group[0], name=codes.DCM.VisualExplanation)
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in images} == others


def test_what_is_sent_again_is_not_scored_again(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    sent = phantom_series(tmp_path)
    for _ in range(2):
        assert send(gateway.port, sent) == 0
        wait_for(lambda: gateway.status()["studies"] == {"open": 0, "scored": 0, "done": 1, "dead": 0})
    assert len(reports(pacs)) == 1


def test_a_corrupt_instance_is_named_and_its_neighbours_are_scored(
    gateway: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    sent = phantom_series(tmp_path, 6)
    corrupt = dcmread(sent[2])
    corrupt.PixelData = corrupt.PixelData[:100]
    corrupt.save_as(sent[2])
    assert send(gateway.port, sent) == 0
    wait_for(lambda: bool(reports(pacs)))
    (report,) = reports(pacs)
    (group,) = report.content.get_image_measurement_groups()
    assert {item.referenced_sop_instance_uid for item in group.source_images} == {p.stem for p in sent} - {sent[2].stem}
    (dead,) = gateway.status()["dead_instances"]  # type: ignore[misc]
    assert dead["instance"] == sent[2].stem  # type: ignore[index]
    assert "PixelData" in dead["reason"]  # type: ignore[index]


def test_a_study_of_other_series_is_done_with_the_reason(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    sent = phantom_series(tmp_path, SeriesDescription="t1_tse", EchoTime=10)
    assert send(gateway.port, sent) == 0
    wait_for(lambda: gateway.status()["studies"]["done"] == 1)  # type: ignore[index]
    shown = gateway.command("show", str(dcmread(sent[0]).StudyInstanceUID), "--json")
    assert "echo time is 10 ms; expected at least 60 ms" in json.loads(shown.stdout)["left_out"]
    assert not reports(pacs)


def test_strangers_are_refused(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}", "--peer=MODALITY")
    sent = phantom_series(tmp_path)
    with Gateway(tmp_path / "journal", *flags) as gateway:
        assert send(gateway.port, sent, calling="STRANGER") != 0
        assert send(gateway.port, sent, called="OTHER") != 0
        assert gateway.status()["studies"] == {"open": 0, "scored": 0, "done": 0, "dead": 0}
        assert send(gateway.port, sent) == 0


def test_each_of_the_three_may_be_killed_and_every_study_has_one_report(tmp_path: Path) -> None:
    studies = [phantom_series(tmp_path, PatientID=f"P-{number}") for number in range(4)]
    with LiveServer(tmp_path / "server", port=0) as server, Orthanc(tmp_path / "orthanc") as pacs:
        publish_untrained(server.model_repository, "model", size=32)
        address = server.address
        port = address.rpartition(":")[2]
        server.stop()
        flags = (f"--server={address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
        with Gateway(tmp_path / "journal", *flags) as gateway:
            assert send(gateway.port, studies[0]) == 0  # and no server is there
            gateway.kill()
            gateway.start()
            assert send(gateway.port, studies[1]) == 0
            revived = LiveServer(tmp_path / "server", port=port)
            with revived:
                wait_for(lambda: len(reports(pacs)) == 2)
                pacs.kill()
                assert send(gateway.port, studies[2]) == 0
                wait_for(lambda: gateway.status()["studies"]["scored"] == 1)  # type: ignore[index]
                gateway.kill()
                gateway.start()
                pacs.start()
                wait_for(lambda: len(reports(pacs)) == 3)
                revived.kill()
                assert send(gateway.port, studies[3]) == 0
                time.sleep(2)
                revived.start()
                wait_for(lambda: gateway.status()["studies"] == {"open": 0, "scored": 0, "done": 4, "dead": 0})
                assert sorted(report.PatientID for report in reports(pacs)) == ["P-0", "P-1", "P-2", "P-3"]
        server.start()


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "none")
    ended = gateway.command("status")
    assert (ended.returncode, "holds no journal" in ended.stderr) == (2, True)
    ended = gateway.command("run", "--model=m", "--pacs=nonsense")
    assert (ended.returncode, "AET@HOST:PORT" in ended.stderr) == (2, True)
    ended = gateway.command("run", "--model=m")
    assert (ended.returncode, "one of --pacs and --stow" in ended.stderr) == (2, True)


def test_rules_from_a_file_choose_the_series(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    (tmp_path / "rules.yaml").write_text("echo_time_ms: {max: 20}")
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
    with Gateway(tmp_path / "journal", *flags, f"--rules={tmp_path / 'rules.yaml'}") as gateway:
        assert send(gateway.port, phantom_series(tmp_path, EchoTime=10, PatientID="short")) == 0
        assert send(gateway.port, phantom_series(tmp_path, EchoTime=100, PatientID="long")) == 0
        wait_for(lambda: gateway.status()["studies"]["done"] == 2)  # type: ignore[index]
    assert [report.PatientID for report in reports(pacs)] == ["short"]
    (tmp_path / "rules.yaml").write_text("echo_time: {max: 20}")
    ended = gateway.command("run", "--model=m", *flags, f"--rules={tmp_path / 'rules.yaml'}")
    assert (ended.returncode, "echo_time is {'max': 20}; expected one of the keys" in ended.stderr) == (2, True)
