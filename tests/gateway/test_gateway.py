"""A modality, the gateway, a server and a PACS, all of them real: nothing is lost, nothing is sent twice."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from ssl import CERT_REQUIRED, PROTOCOL_TLS_SERVER, SSLContext

import numpy as np
import pytest
from highdicom.sr import Comprehensive3DSR, srread
from highdicom.sr.utils import find_content_items
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage, MRImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when it is imported

from benchmarks.models import publish_untrained
from limner import Client
from limner.gateway.journal import Journal
from limner.gateway.records import Commitment
from tests.conftest import Run
from tests.gateway.authority import Authority
from tests.gateway.modality import Modality
from tests.gateway.orthanc import Orthanc
from tests.gateway.processes import Gateway, send
from tests.gateway.proxy import proxying
from tests.gateway.real import needs_real
from tests.gateway.waiting import wait_for
from tests.imaging.builders import mr_instance
from tests.imaging.conformance import assert_valid_dicom
from tests.live import LiveServer

pytestmark = needs_real

ONE_DONE = {"open": 0, "scored": 0, "done": 1, "dead": 0}


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
    wait_for(lambda: gateway.counts() == ONE_DONE)
    assert gateway.status()["studies"] == ONE_DONE


def test_results_go_to_a_service_whose_authority_is_given(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    """A service that asks for a certificate of ours, and before it one that does not: no TLS is listened with then."""
    authority = Authority(tmp_path / "ours")
    certificate, key = authority.sign("pacs")
    ours = [f"--tls-{name}={file}" for name, file in zip(("certificate", "key"), authority.sign("us"), strict=True)]
    for number, pair in enumerate(([], ours)):
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if pair:
            context.load_verify_locations(authority.certificate)
            context.verify_mode = CERT_REQUIRED
        with proxying(pacs.url, tls=context) as proxy:
            flags = (f"--server={server.address}", f"--stow={proxy.url}/dicom-web", f"--tls-ca={authority.certificate}")
            with Gateway(tmp_path / f"journal{number}", *flags, *pair) as gateway:
                sender = ["+tls", str(key), str(certificate), "+cf", str(authority.certificate)] if pair else []
                assert send(gateway.port, phantom_series(tmp_path), flags=sender) == 0
                wait_for(lambda: gateway.counts() == ONE_DONE)
    assert len(reports(pacs)) == 2


def test_heat_maps_come_back_where_they_are_asked_for(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    flags = [f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}"]
    flags += [f"--send={kind}" for kind in ("report", "heat-map", "picture")]
    sent = phantom_series(tmp_path, FrameOfReferenceUID=generate_uid())
    with Gateway(tmp_path / "journal", *flags) as gateway:
        assert send(gateway.port, sent) == 0
        wait_for(lambda: gateway.counts()["done"] == 1)
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
        wait_for(lambda: gateway.counts() == ONE_DONE)
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


def test_a_corrupt_instance_that_comes_again_whole_is_scored(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    sent = phantom_series(tmp_path, 6)
    whole, cut = sent[2].read_bytes(), dcmread(sent[2])
    cut.PixelData = cut.PixelData[:100]
    cut.save_as(sent[2])
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
    with Gateway(tmp_path / "journal", *flags) as gateway:
        assert send(gateway.port, sent) == 0
        wait_for(lambda: gateway.counts() == ONE_DONE)
        assert len(gateway.status()["dead_instances"]) == 1  # type: ignore[arg-type]
        sent[2].write_bytes(whole)
        assert send(gateway.port, sent[2:3]) == 0
        wait_for(lambda: len(reports(pacs)) == 2)
        wait_for(lambda: gateway.counts() == ONE_DONE)
        assert gateway.status()["dead_instances"] == []
    figures = [report.content.get_image_measurement_groups()[0].source_images for report in reports(pacs)]
    assert sorted(map(len, figures)) == [5, 6]


def test_a_study_of_other_series_is_done_with_the_reason(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    sent = phantom_series(tmp_path, SeriesDescription="t1_tse", EchoTime=10)
    assert send(gateway.port, sent) == 0
    wait_for(lambda: gateway.counts()["done"] == 1)
    shown = gateway.command("show", str(dcmread(sent[0]).StudyInstanceUID), "--json")
    assert "echo time is 10 ms; expected at least 60 ms" in json.loads(shown.stdout)["left_out"]
    assert not reports(pacs)


def test_strangers_are_refused(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}", "--peer=MODALITY")
    sent = phantom_series(tmp_path)
    with Gateway(tmp_path / "journal", *flags) as gateway:
        assert send(gateway.port, sent, calling="STRANGER") != 0
        assert send(gateway.port, sent, called="OTHER") != 0
        assert gateway.counts() == {"open": 0, "scored": 0, "done": 0, "dead": 0}
        assert send(gateway.port, sent) == 0


NOBODY = "127.0.0.1:1"


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway whose server and PACS are away."""
    with Gateway(tmp_path / "journal", f"--server={NOBODY}", f"--pacs=PACS@{NOBODY}", "--commitment") as node:
        yield node


def test_what_waits_is_told_with_its_reason_and_tried_again_on_demand(idle: Gateway, tmp_path: Path) -> None:
    assert send(idle.port, phantom_series(tmp_path)) == 0
    wait_for(lambda: bool(idle.status()["waiting"]))
    (waiting,) = idle.status()["waiting"]  # type: ignore[misc]
    assert waiting["state"] == "open"
    assert waiting["next_try"] > waiting["received"]
    assert NOBODY in waiting["reason"]
    told = idle.command("status")
    assert f"process {idle.pid}" in told.stderr
    assert "1 open, 0 scored, 0 done, 0 dead" in told.stderr
    assert NOBODY in told.stdout
    assert NOBODY in idle.command("show", "1").stdout
    assert idle.command("status", "--check").returncode == 0  # it waits for somebody else
    assert idle.command("status", "--check", "--max-wait-s=0.1").returncode == 1  # for too long
    assert json.loads(idle.command("retry", "1", "--json").stdout)["studies"] == 1
    assert idle.command("retry", "2").returncode == 2
    idle.stop()
    assert idle.command("status", "--check").returncode == 1  # nobody takes anything
    assert "does not run" in idle.command("status").stderr
    idle.start()


def test_a_commitment_that_nobody_takes_the_report_of_needs_a_person(limner: Run, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.claim()
    commitment = Commitment("1.9", "MODALITY", [], [], time.time() - 100)
    journal.commit(commitment)
    check = ("gateway", "status", "--check", f"--journal={tmp_path}")
    assert limner(*check, "--max-wait-s=99")[0] == 0  # its turn comes
    journal.postpone_report(commitment, "away")
    assert [limner(*check, f"--max-wait-s={limit_s}")[0] for limit_s in (99, 200)] == [1, 0]
    journal.close()


def test_a_second_gateway_on_the_journal_is_refused(idle: Gateway) -> None:
    flags = ("--model=m", f"--pacs=PACS@{NOBODY}", "--host=127.0.0.1")
    second = idle.command("run", "--port=0", *flags)
    assert second.returncode == 1
    assert second.stderr == f"error: {idle.journal} is served by another gateway, process {idle.pid}\n"
    other = Gateway(idle.journal.parent / "other")
    taken = other.command("run", f"--port={idle.port}", *flags)
    assert taken.returncode == 1
    assert f"cannot listen on 127.0.0.1:{idle.port}: Address already in use" in taken.stderr


def test_it_ends_at_sigterm_though_a_peer_is_connected(idle: Gateway) -> None:
    node = AE(ae_title="MODALITY")
    node.add_requested_context(Verification)
    association = node.associate("127.0.0.1", idle.port, ae_title="LIMNER")
    assert association.send_c_echo().Status == 0
    with socket.create_connection(("127.0.0.1", idle.port)) as silent:
        silent.sendall(b"\x01\x00\x00")
        started = time.monotonic()
        assert idle.stop() == 0
        assert time.monotonic() - started < 15
    idle.start()


def test_it_ends_at_a_signal_that_another_thread_is_given(idle: Gateway) -> None:
    other = max(int(task.name) for task in Path(f"/proc/{idle.pid}/task").iterdir())
    assert other != idle.pid
    os.kill(other, signal.SIGTERM)  # to the process, and this thread is asked first
    assert idle.wait() == 0
    idle.start()


def test_an_instance_that_is_too_large_takes_no_memory(tmp_path: Path) -> None:
    pixels = np.zeros((12000, 12000), np.uint16)
    mr_instance(pixels, StudyInstanceUID=generate_uid()).save_as(tmp_path / "large.dcm", enforce_file_format=True)
    flags = (f"--server={NOBODY}", f"--pacs=PACS@{NOBODY}", "--max-instance-mib=1")
    with Gateway(tmp_path / "journal", *flags) as node:
        before = peak_mib(node.pid)
        assert send(node.port, [tmp_path / "large.dcm"]) != 0  # 275 MiB
        assert peak_mib(node.pid) - before < 30
        assert node.status()["instances"] == 0


def peak_mib(pid: int) -> float:
    """Largest resident memory of a process so far."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_the_log_holds_nothing_of_a_patient(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    """Also where a header is wrong in ways that libraries warn of, and quote."""
    secrets = {
        "PatientName": "Doe^Secret" * 10,  # too long
        "PatientID": "P-SECRET",
        "PatientBirthDate": "31.12.1950",  # no date
        "StudyDate": "yesterday-SECRET",
        "AccessionNumber": "A-SECRET-1234567890",  # too long
        "SeriesDescription": "t2_tse SECRET",
    }
    good, bad = phantom_series(tmp_path, **secrets), phantom_series(tmp_path, 6, **secrets)
    corrupt = dcmread(bad[0])
    corrupt.PixelData, corrupt.Rows = corrupt.PixelData[:10], 0
    corrupt.save_as(bad[0])
    other = phantom_series(tmp_path, **{**secrets, "EchoTime": 10})
    (refused,) = phantom_series(tmp_path, 1, **secrets)
    stray = dcmread(refused)
    stray.StudyInstanceUID = "1.2.SECRET"
    stray.save_as(refused)
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}", "--attempts=1")
    with Gateway(tmp_path / "journal", *flags) as gateway:
        for series in (good, bad, other):
            send(gateway.port, series)
        assert send(gateway.port, [refused]) != 0
        wait_for(lambda: gateway.counts()["done"] == 3)
    log = gateway.log_file.read_text()
    assert "study 3 is done" in log
    assert "refused an instance of MODALITY" in log
    told = {"SECRET", "1950", *(path.stem for path in (*good, *bad, *other, refused))}
    told |= {str(dcmread(series[0]).StudyInstanceUID) for series in (good, bad, other)}
    assert not [word for word in told if word.lower() in log.lower()]


@pytest.mark.parametrize("flag", ["--complete-count=5", "--commitment"])
def test_a_study_need_not_be_waited_for(flag: str, tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    flags = (flag, f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
    sent = phantom_series(tmp_path)
    with Gateway(tmp_path / "journal", *flags, quiet_s=3600) as gateway:
        assert send(gateway.port, sent) == 0
        if flag == "--commitment":
            modality = Modality(gateway.port)
            assert modality.ask([(MRImageStorage, path.stem) for path in sent]) == 0
            wait_for(lambda: [event for event, _ in modality.told] == [1])
            modality.release()
        wait_for(lambda: gateway.counts()["done"] == 1)
        assert gateway.status()["unreported_commitments"] == []


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "none")
    ended = gateway.command("status")
    assert (ended.returncode, "holds no journal" in ended.stderr) == (2, True)


LONG = "A" * 17
PACS = "--pacs=A@b:1"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--pacs=nonsense",), "--pacs: 'nonsense'; expected AET@HOST:PORT"),
        (("--pacs=A@b:99999",), "--pacs: 'A@b:99999'; expected AET@HOST:PORT, a port from 1 to 65535"),
        ((f"--pacs={LONG}@b:1",), f"--pacs: '{LONG}' is no AE title; expected 1 to 16 ASCII characters"),
        ((PACS, "--peer=A@"), "--peer: 'A@'; expected AET, AET@HOST or AET@HOST:PORT"),
        ((), "one of --pacs and --stow"),
        ((PACS, f"--aet={LONG}"), f"--aet: '{LONG}' is no AE title; expected 1 to 16 ASCII characters"),
        ((PACS, "--aet="), "--aet: '' is no AE title"),
        ((PACS, "--aet=A\\B"), "expected 1 to 16 ASCII characters and no backslash"),
        (("--stow=notaurl",), "--stow: 'notaurl'; expected http://HOST[:PORT]/PATH or https://"),
        (("--stow=ftp://a/b",), "--stow: 'ftp://a/b'; expected http://HOST"),
        (("--stow=http://a:99999/b",), "--stow: 'http://a:99999/b'; expected http://HOST"),
        (("--stow=http://user:word@a/b",), "--stow: credentials in the URL; expected them in LIMNER_DICOMWEB_TOKEN"),
        (("--stow=user:word@a/b",), "--stow: credentials in the URL"),
        ((PACS, "--model=cer vix:::"), "--model: 'cer vix:::'; expected NAME, NAME:VERSION or NAME:ALIAS"),
        ((PACS, "--model=cervix:"), "--model: 'cervix:'; expected NAME, NAME:VERSION or NAME:ALIAS"),
        ((PACS, "--tls-certificate=/none"), "--tls-certificate and --tls-key go together"),
        (
            (PACS, "--tls-certificate=/none", f"--tls-key={__file__}"),
            "--tls-certificate: /none: No such file or directory; expected a PEM file",
        ),
        (
            (PACS, f"--tls-certificate={__file__}", f"--tls-key={__file__}"),
            f"--tls-certificate: {__file__} and {__file__}; expected a PEM certificate and the key",
        ),
        ((PACS, "--tls-ca=/none"), "--tls-ca: needs --tls-certificate and --tls-key"),
    ],
)
def test_wrong_options_are_named_before_anything_is_started(
    options: tuple[str, ...], told: str, limner: Run, tmp_path: Path
) -> None:
    code, out, err = limner("gateway", "run", "--model=m", *options, f"--journal={tmp_path / 'journal'}", "--port=0")
    assert (code, out, told in err) == (2, "", True), err
    assert "word@" not in err
    assert not (tmp_path / "journal").exists()


def test_rules_from_a_file_choose_the_series(tmp_path: Path, server: LiveServer, pacs: Orthanc) -> None:
    (tmp_path / "rules.yaml").write_text("echo_time_ms: {max: 20}")
    flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
    with Gateway(tmp_path / "journal", *flags, f"--rules={tmp_path / 'rules.yaml'}") as gateway:
        assert send(gateway.port, phantom_series(tmp_path, EchoTime=10, PatientID="short")) == 0
        assert send(gateway.port, phantom_series(tmp_path, EchoTime=100, PatientID="long")) == 0
        wait_for(lambda: gateway.counts()["done"] == 2)
    assert [report.PatientID for report in reports(pacs)] == ["short"]
    (tmp_path / "rules.yaml").write_text("echo_time: {max: 20}")
    ended = gateway.command("run", "--model=m", *flags, f"--rules={tmp_path / 'rules.yaml'}")
    assert (ended.returncode, "echo_time is {'max': 20}; expected one of the keys" in ended.stderr) == (2, True)
