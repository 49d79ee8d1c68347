"""`limner score` of a query: pulled from a real Orthanc, all of it or nothing is scored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests.conftest import Run
from tests.gateway.orthanc import Orthanc
from tests.gateway.proxy import Proxy, proxying
from tests.gateway.pulling import add, files, t2_series
from tests.gateway.real import needs_real
from tests.live import LiveServer
from tests.scoring.tables import assert_same_tables, read

pytestmark = needs_real


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture
def pacs(orthanc: Orthanc) -> Iterator[Proxy]:
    with proxying(orthanc.url) as proxy:
        yield proxy


@pytest.fixture
def study(orthanc: Orthanc) -> tuple[str, set[str]]:
    """A study of January, beside one of the same patient of February: PatientID and instances."""
    patient = f"P-{generate_uid()[-12:]}"
    january, february = (t2_series(StudyDate=date, PatientID=patient) for date in ("20240105", "20240205"))
    add(orthanc, january)
    add(orthanc, february)
    return patient, {str(one.SOPInstanceUID) for one in january}


@pytest.fixture
def command(server: LiveServer, untrained: str, pacs: Proxy, study: tuple[str, set[str]]) -> list[str]:
    terms = ["--query", f"PatientID={study[0]}", "StudyDate=20240101-20240131", "ModalitiesInStudy=MR"]
    return ["score", untrained, f"--server={server.address}", f"--dicomweb={pacs.url}/dicom-web", *terms]


def pulled(out: Path) -> Path:
    """The folder of the one query that was pulled beside a run."""
    (folder,) = out.parent.glob("dicom-*")
    return folder


def test_the_studies_of_a_query_are_scored_and_no_other(
    command: list[str], study: tuple[str, set[str]], pacs: Proxy, limner: Run, tmp_path: Path
) -> None:
    patient, wanted = study
    out = tmp_path / "scores"
    code, _, err = limner(*command, f"--out={out}", "--resume")
    assert code == 0, err
    assert f"images of the query are kept in {pulled(out)}\n" in err
    assert "1 studies: 5 images pulled, 0 here already, 0 failed\n" in err
    assert {path.stat().st_mode & 0o777 for path in pulled(out).glob("**/")} == {0o700}
    rows = read(out / "images.csv")
    assert {Path(str(row["path"])).stem for row in rows} == wanted == files(pulled(out)).keys()
    assert {(row["subject"], row["error"]) for row in rows} == {(patient, "")}
    kept = (out / "rows.jsonl").read_bytes()
    pacs.seen.clear()
    code, _, err = limner(*command, f"--out={out}", "--resume")
    assert (code, "scored 5 of 5" in err, pacs.seen) == (0, True, [])
    assert (out / "rows.jsonl").read_bytes() == kept
    code, _, err = limner(*command, f"--out={out}", "--resume", "PatientSex=O")
    assert (code, f"expected {pulled(out)}, with which the run" in err, pacs.seen) == (2, True, [])


def test_nothing_is_scored_before_all_is_there(
    command: list[str], study: tuple[str, set[str]], pacs: Proxy, limner: Run, tmp_path: Path
) -> None:
    _, wanted = study
    out = tmp_path / "scores"
    broken = min(wanted)
    pacs.broken, pacs.broken_status = broken, 400
    code, _, err = limner(*command, f"--out={out}", "--resume")
    assert (code, f"failed: {broken}: " in err, "4 images pulled, 0 here already, 1 failed" in err) == (1, True, True)
    assert list(out.iterdir()) == []
    pacs.broken = ""
    code, _, err = limner(*command, f"--out={out}", "--resume")
    assert (code, "1 images pulled, 4 here already, 0 failed" in err, "scored 5 of 5" in err) == (0, True, True)


def test_a_pacs_that_is_away_ends_with_3(
    command: list[str], orthanc: Orthanc, limner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.gateway.pull.puller.FIRST_PAUSE_S", 0.01)
    orthanc.kill()
    try:
        code, _, err = limner(*command, f"--out={tmp_path / 'scores'}")
    finally:
        orthanc.start()
    assert (code, "stopped: " in err) == (3, True)
    assert list((tmp_path / "scores").iterdir()) == []


def test_shards_share_what_is_pulled(command: list[str], limner: Run, tmp_path: Path) -> None:
    code, _, err = limner(*command, f"--out={tmp_path / 'listed'}", "--dry-run")
    assert (code, "5 slices would be scored" in err) == (0, True)
    for index in (0, 1):
        code, _, err = limner(*command, f"--out={tmp_path / f'part-{index}'}", f"--shard={index}/2")
        assert (code, "0 images pulled, 5 here already" in err) == (0, True)
    assert limner("merge", tmp_path / "merged", tmp_path / "part-0", tmp_path / "part-1")[0] == 0
    assert limner(*command, f"--out={tmp_path / 'whole'}")[0] == 0
    assert_same_tables(tmp_path / "merged", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--dicomweb=http://127.0.0.1:1", "--query=Nonsense=1"), "Nonsense is no keyword of DICOM"),
        (("--dicomweb=http://127.0.0.1:1", "--query=StudyDate=2024-01"), "StudyDate is '2024-01'; expected a date"),
        (("--dicomweb=http://127.0.0.1:1", "mri"), "mri is 'mri'; expected KEYWORD=VALUE"),
        (("--dicomweb=http://127.0.0.1:1",), "SOURCE...: needed, or --dicomweb and --query"),
        (("--query=PatientID=P-1", "mri"), "--query: goes with --dicomweb"),
        ((), "SOURCE...: needed, or --dicomweb and --query"),
    ],
)
def test_wrong_queries_are_named(options: tuple[str, ...], told: str, limner: Run, tmp_path: Path) -> None:
    code, _, err = limner("score", "m", f"--out={tmp_path / 'scores'}", *options)
    assert (code, told in " ".join(err.split())) == (2, True)
    assert not list(tmp_path.glob("dicom-*"))


def test_a_query_that_finds_nothing_is_wrong(command: list[str], limner: Run, tmp_path: Path) -> None:
    code, _, err = limner(*command, "PatientSex=O", f"--out={tmp_path / 'scores'}")
    assert (code, "0 studies: 0 images pulled" in err, "holds no image to score" in err) == (2, True, True)
