"""Pulling from a real Orthanc: what comes is what is there and was asked for, and nothing else."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, RLELossless, generate_uid

from benchmarks.models import publish_untrained
from limner.gateway.peers import http_session
from limner.gateway.pull.dicomweb import DicomwebSource
from tests.conftest import Run
from tests.gateway.orthanc import Orthanc
from tests.gateway.processes import Gateway
from tests.gateway.proxy import proxying
from tests.gateway.pulling import REAL, SOURCES, STUDIES, add, files, instances, real_pacs, source, summary, t2_series
from tests.gateway.real import needs_real
from tests.gateway.waiting import wait_for
from tests.imaging.builders import enhanced_mr
from tests.live import LiveServer

pytestmark = needs_real


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with real_pacs(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.mark.parametrize("name", SOURCES)
def test_a_study_comes_as_it_is_there_and_once(name: str, pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    wanted = instances(STUDIES[0])
    command = [
        "pull",
        *source(name, pacs),
        f"--study={STUDIES[0]}",
        "--all-series",
        f"--out={tmp_path / 'out'}",
        "--json",
    ]
    code, out, err = limner(*command)
    assert (code, err) == (0, "")
    assert summary(out) | {"notice": ""} == {
        "notice": "",
        "looked_into": 1,
        "pulled": len(wanted),
        "present": 0,
        "failed": {},
        "left_out": [],
        "stopped": "",
    }
    came = files(tmp_path / "out")
    assert came.keys() == wanted.keys()
    for uid, path in came.items():
        original = dcmread(wanted[uid])
        assert path.parts[-3:-1] == (original.StudyInstanceUID, original.SeriesInstanceUID)
        assert dcmread(path) == original
        assert path.stat().st_mode & 0o777 == 0o600
        if name == "dicomweb":
            assert path.read_bytes() == wanted[uid].read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("**/")} == {0o700}
    before = {path: path.stat().st_mtime_ns for path in came.values()}
    again = summary(limner(*command)[1])
    assert (again["pulled"], again["present"]) == (0, len(wanted))
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "out").values()} == before


@pytest.mark.parametrize("name", SOURCES)
def test_only_what_the_rules_take_is_fetched(name: str, pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    t2 = t2_series()
    study = {"StudyInstanceUID": t2[0].StudyInstanceUID, "PatientID": "P-7"}
    short = t2_series(SeriesDescription="dynamic", EchoTime=2, SeriesInstanceUID=generate_uid(), **study)
    named = t2_series(SeriesDescription="DWI b800", SeriesInstanceUID=generate_uid(), **study)
    report = t2_series(1, Modality="SR", SeriesInstanceUID=generate_uid(), **study)
    frames = enhanced_mr(np.zeros((6, 8, 8), np.uint16))
    frames.StudyInstanceUID, frames.SeriesInstanceUID, frames.SOPInstanceUID = (
        t2[0].StudyInstanceUID,
        *map(generate_uid, (None, None)),
    )
    frames.file_meta.MediaStorageSOPClassUID = frames.SOPClassUID
    add(pacs, t2, short, named, report, [frames])
    options = [*source(name, pacs), f"--study={t2[0].StudyInstanceUID}"]
    planned = summary(limner("pull", *options, "--dry-run", "--json")[1])
    assert not (tmp_path / "out").exists()
    code, out, _ = limner("pull", *options, f"--out={tmp_path / 'out'}", "--json")
    assert code == 0
    assert files(tmp_path / "out").keys() == {str(one.SOPInstanceUID) for one in (*t2, frames)}
    left_out = {one["description"]: one["reasons"] for one in summary(out)["left_out"]}  # type: ignore[attr-defined]
    assert left_out.keys() == {"dynamic", "DWI b800", "t2_tse"}
    assert left_out["dynamic"] == ["echo time is 2 ms; expected at least 60 ms"]
    assert left_out["t2_tse"] == ["modality is SR; expected MR"]
    (found,) = planned["studies"]  # type: ignore[misc]
    assert {one["description"]: one["pulled"] for one in found["series"] if one["modality"] == "MR"} == {  # type: ignore[index]
        "dynamic": False,
        "DWI b800": False,
        "t2_tse": True,
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_query_finds_series_of_studies(name: str, pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    options = [*source(name, pacs), f"--out={tmp_path}", "--all-series", "--json"]
    terms = ["--query", "PatientName=ProstateX-*", "StudyDate=20110201-20110228", "SeriesDescription=*sag*"]
    code, out, _ = limner("pull", *options, *terms)
    assert (code, summary(out)["looked_into"], summary(out)["pulled"]) == (0, 1, 3)
    assert {dcmread(path).SeriesDescription for path in files(tmp_path).values()} == {"t2_tse_sag_320_p2"}
    code, out, _ = limner("pull", *options, "--query", "PatientID=NOBODY")
    assert (code, summary(out)["looked_into"]) == (0, 0)


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_work_list_names_and_is_not_there_is_named(
    name: str, pacs: Orthanc, limner: Run, tmp_path: Path
) -> None:
    accession = dcmread(next(path for path in REAL if "ProstateX-0218" in str(path))).AccessionNumber
    work_list, folder = tmp_path / "list.csv", tmp_path / "out"
    work_list.write_text(f"AccessionNumber,StudyInstanceUID\n{accession},\nNONE,\n,{STUDIES[1]}\n,1.2.3.4\n")
    options = [*source(name, pacs), f"--work-list={work_list}", "--all-series", f"--out={folder}"]
    code, out, err = limner("pull", *options)
    assert (code, out) == (1, "")
    assert len(files(tmp_path / "out")) == len(REAL)
    assert "failed: AccessionNumber=NONE: " in err
    assert "failed: StudyInstanceUID=1.2.3.4: " in err
    assert err.endswith(f"2 studies: {len(REAL)} images pulled, 0 here already, 2 failed\n")


@pytest.mark.parametrize("name", SOURCES)
def test_compressed_images_stay_compressed(name: str, pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    (instance,) = t2_series(1)
    instance.compress(RLELossless)
    study = add(pacs, [instance])
    assert limner("pull", *source(name, pacs), f"--study={study}", "--all-series", f"--out={tmp_path}")[0] == 0
    (path,) = files(tmp_path).values()
    pulled = dcmread(path)
    assert pulled.file_meta.TransferSyntaxUID == RLELossless
    assert pulled.PixelData == instance.PixelData


def test_answers_that_come_in_pages_are_all_taken(pacs: Orthanc) -> None:
    with proxying(pacs.url) as proxy:
        source = DicomwebSource(f"{proxy.url}/dicom-web", http_session({}), page_size=2)
        study = {"StudyInstanceUID": STUDIES[0]}
        series = [str(one.SeriesInstanceUID) for one in source.find("SERIES", study, ("SeriesInstanceUID",))]
        keys = [{**study, "SeriesInstanceUID": uid} for uid in series]
        found = [str(one.SOPInstanceUID) for key in keys for one in source.find("IMAGE", key, ("SOPInstanceUID",))]
        assert sorted(found) == sorted(instances(STUDIES[0]))
        assert any("limit=2&offset=2" in path for path in proxy.seen)


def test_a_service_that_knows_no_offset_is_not_asked_for_ever(pacs: Orthanc) -> None:
    with proxying(pacs.url, ignored="offset") as proxy:
        source = DicomwebSource(f"{proxy.url}/dicom-web", http_session({}))
        assert len(source.find("STUDY", {"PatientID": "ProstateX-0000"}, ("StudyInstanceUID",))) == 1
        assert len(proxy.seen) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "one of --dicomweb and --pacs"),
        (("--dicomweb=http://a", "--pacs=A@b:1"), "one of --dicomweb and --pacs"),
        (("--dicomweb=http://a", "--move"), "--move"),
        (("--dicomweb=a",), "--dicomweb"),
        (("--dicomweb=http://user:word@a",), "LIMNER_DICOMWEB_TOKEN"),
        (("--dicomweb=ftp://a",), "--dicomweb: 'ftp://a'; expected http://HOST"),
        (("--dicomweb=http://a", "--tls-ca=/none"), "--tls-ca: /none: No such file or directory"),
        (("--pacs=A@b",), "AET@HOST:PORT"),
        (("--pacs=TOOLONGFORANAETITLE@b:1",), "--pacs: 'TOOLONGFORANAETITLE' is no AE title"),
        (("--pacs=A@b:1", "--aet="), "--aet: '' is no AE title"),
        (("--pacs=A@b:1", "--tls-ca=x"), "--tls-certificate"),
        (("--pacs=A@b:1",), "--out"),
        (("--pacs=A@b:1", "--journal=nowhere"), "holds no journal"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], told: str, limner: Run) -> None:
    code, _, err = limner("pull", *options, "--study=1.2.3")
    assert (code, told in " ".join(err.split())) == (2, True)


def test_a_gateway_scores_what_was_pulled_into_its_journal(tmp_path: Path, limner: Run) -> None:
    with LiveServer(tmp_path / "server") as server, Orthanc(tmp_path / "orthanc") as pacs:
        publish_untrained(server.model_repository, "model", size=32)
        studies = {add(pacs, t2_series(PatientID=f"P-{number}")) for number in range(2)}
        flags = (f"--server={server.address}", f"--stow={pacs.url}/dicom-web")
        with Gateway(tmp_path / "journal", *flags) as gateway:
            command = ["pull", *source("get", pacs), "--query=PatientID=P-*", f"--journal={gateway.journal}", "--json"]
            assert summary(limner(*command)[1])["pulled"] == 10
            wait_for(lambda: len(pacs.instances(SOPClassUID=Comprehensive3DSRStorage)) == 2)
            reports = [pacs.file(str(one["ID"])) for one in pacs.instances(SOPClassUID=Comprehensive3DSRStorage)]
            assert {dcmread(BytesIO(report)).StudyInstanceUID for report in reports} == studies
            assert summary(limner(*command)[1])["present"] == 10
