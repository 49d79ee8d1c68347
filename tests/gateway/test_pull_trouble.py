"""Pulling when something is away, wrong or dies: what does not come is named, and what came stays as it was there."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
from pydicom import dcmread

from limner.gateway.destinations import Dicomweb
from limner.gateway.peers import UnreachableError
from limner.gateway.pull.archive import Folder
from tests.conftest import Run
from tests.gateway.authority import Authority
from tests.gateway.fragile import fragile_pacs
from tests.gateway.orthanc import Orthanc, free_port
from tests.gateway.proxy import proxying
from tests.gateway.pulling import PORT, REAL, STUDIES, add, files, instances, real_pacs, source, summary, t2_series
from tests.gateway.real import needs_real
from tests.gateway.waiting import wait_for

pytestmark = needs_real


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with real_pacs(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


def count(folder: Path) -> int:
    """How many instances are there so far."""
    return sum(not path.name.startswith(".") for path in folder.glob("*/*/*.dcm"))


@contextmanager
def started(*options: str) -> Iterator["subprocess.Popen[str]"]:
    """`limner pull` as a process, which does not outlive the block."""
    command = [sys.executable, "-m", "limner.cli.main", "pull", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["get", "move"])
def test_an_instance_that_a_pacs_lost_is_named_and_its_neighbours_come(name: str, limner: Run, tmp_path: Path) -> None:
    known = {"limner": ["LIMNER", "127.0.0.1", PORT]}
    with Orthanc(tmp_path / "orthanc", DicomModalities=known) as pacs:
        series = t2_series(6)
        study = add(pacs, series)
        lost = str(series[2].SOPInstanceUID)
        pacs.kill()
        pacs.lose(lost)
        pacs.start()
        options = [*source(name, pacs), f"--study={study}", f"--out={tmp_path / 'out'}", "--retries=1", "--json"]
        code, out, err = limner("pull", *options)
        assert code == 1
        assert summary(out)["failed"].keys() == {lost}  # type: ignore[attr-defined]
        assert files(tmp_path / "out").keys() == {str(one.SOPInstanceUID) for one in series} - {lost}
        assert "patient" not in err


def test_of_a_pacs_that_breaks_and_sends_strangers_only_what_was_asked_for_is_kept(limner: Run, tmp_path: Path) -> None:
    series = t2_series(8)
    broken = str(series[2].SOPInstanceUID)
    with fragile_pacs(series, broken, strangers=t2_series(1)) as port:
        options = [f"--pacs=FRAGILE@127.0.0.1:{port}", f"--study={series[0].StudyInstanceUID}", "--retries=1", "--json"]
        code, out, _ = limner("pull", *options, f"--out={tmp_path}")
    assert (code, list(summary(out)["failed"])) == (1, [broken])  # type: ignore[call-overload]
    assert files(tmp_path).keys() == {str(one.SOPInstanceUID) for one in series} - {broken}


def test_a_pacs_that_does_not_send_says_so(limner: Run, tmp_path: Path) -> None:
    series = t2_series()
    with fragile_pacs(series, sends=False) as port:
        options = [f"--pacs=FRAGILE@127.0.0.1:{port}", f"--study={series[0].StudyInstanceUID}", f"--out={tmp_path}"]
        code, _, err = limner("pull", *options)
    assert (code, "takes no Study Root" in err) == (1, True)


def test_what_a_service_fails_on_is_named_and_its_neighbours_come(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    first = t2_series()
    second = t2_series(StudyInstanceUID=first[0].StudyInstanceUID)
    study = add(pacs, first, second)
    broken = str(first[3].SOPInstanceUID)
    with proxying(pacs.url, broken=broken) as proxy:
        options = [f"--dicomweb={proxy.url}/dicom-web", f"--study={study}", "--retries=1", "--json"]
        code, out, _ = limner("pull", *options, f"--out={tmp_path / 'instance'}")
        assert (code, list(summary(out)["failed"])) == (1, [broken])  # type: ignore[call-overload]
        assert len(files(tmp_path / "instance")) == 9
        proxy.broken = f"series/{second[0].SeriesInstanceUID}/instances"
        code, out, _ = limner("pull", *options, f"--out={tmp_path / 'series'}")
        assert (code, list(summary(out)["failed"])) == (1, [second[0].SeriesInstanceUID])  # type: ignore[call-overload]
        assert files(tmp_path / "series").keys() == {str(one.SOPInstanceUID) for one in first}
        proxy.broken = f"studies/{study}/series"
        code, out, _ = limner("pull", *options, f"--study={STUDIES[0]}", "--all-series", f"--out={tmp_path / 'study'}")
        assert (code, list(summary(out)["failed"])) == (1, [study])  # type: ignore[call-overload]
        assert len(files(tmp_path / "study")) == 7
        proxy.broken, proxy.broken_status = "studies/", 502
        unwell = [*options, f"--study={STUDIES[0]}", f"--study={STUDIES[1]}"]
        code, out, _ = limner("pull", *unwell, f"--out={tmp_path / 'none'}")
        assert (code, "502" in str(summary(out)["stopped"])) == (3, True)


@pytest.mark.parametrize(
    ("user", "password", "code", "told"),
    [
        ("ann", "right", 0, "7 images pulled"),
        ("ann", "wrong", 1, "401 Unauthorized; expected credentials that it knows in LIMNER_DICOMWEB_TOKEN, or in "),
        ("", "", 1, "401 Unauthorized"),
    ],
)
def test_basic_credentials_come_from_the_environment(
    user: str, password: str, code: int, told: str, limner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_DICOMWEB_USER", user)
    monkeypatch.setenv("LIMNER_DICOMWEB_PASSWORD", password)
    with real_pacs(tmp_path / "orthanc", user=("ann", "right")) as pacs:
        began = time.monotonic()
        ended, _, err = limner(
            "pull", *source("dicomweb", pacs), f"--study={STUDIES[1]}", "--all-series", f"--out={tmp_path / 'out'}"
        )
        assert (ended, told in err) == (code, True)
        assert time.monotonic() - began < 5, "a wrong password is not tried again"


def test_a_bearer_token_comes_from_the_environment(
    pacs: Orthanc, limner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with proxying(pacs.url, token="s3cret") as proxy:  # noqa: S106
        command = [
            "pull",
            f"--dicomweb={proxy.url}/dicom-web",
            f"--study={STUDIES[0]}",
            "--all-series",
            f"--out={tmp_path / 'out'}",
        ]
        monkeypatch.setenv("LIMNER_DICOMWEB_TOKEN", "s3cret")
        assert limner(*command)[0] == 0
        monkeypatch.setenv("LIMNER_DICOMWEB_TOKEN", "old")
        code, _, err = limner(*command)
        assert (code, "401" in err, "old" in err) == (1, True, False)
    assert len(files(tmp_path / "out")) == 7


def test_certificates_are_checked_against_the_authority_that_was_given(
    pacs: Orthanc, limner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = Authority(tmp_path / "right"), Authority(tmp_path / "wrong")
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*right.sign("pacs"))
    with proxying(pacs.url, tls=context) as proxy:
        command = ["pull", f"--dicomweb={proxy.url}/dicom-web", f"--study={STUDIES[0]}", "--dry-run", "--retries=0"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(wrong.certificate))
        assert limner(*command, f"--tls-ca={right.certificate}")[0] == 0
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(right.certificate))
        code, _, err = limner(*command, f"--tls-ca={wrong.certificate}")
        assert (code, "CERTIFICATE_VERIFY_FAILED" in err) == (3, True)


def test_a_service_that_is_busy_is_asked_again_when_it_says(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    with proxying(pacs.url, answers=[(503, 3)]) as proxy:
        options = [f"--dicomweb={proxy.url}/dicom-web", f"--study={STUDIES[0]}", "--all-series", f"--out={tmp_path}"]
        began = time.monotonic()
        assert limner("pull", *options)[0] == 0
        assert time.monotonic() - began > 3
    assert len(files(tmp_path)) == 7


def test_an_answer_that_is_cut_short_is_not_kept(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    with proxying(pacs.url, cut=3) as proxy:
        options = [f"--dicomweb={proxy.url}/dicom-web", f"--study={STUDIES[0]}", "--all-series", f"--out={tmp_path}"]
        assert limner("pull", *options)[0] == 0
    originals, came = instances(STUDIES[0]), files(tmp_path)
    assert came.keys() == originals.keys()
    assert all(path.read_bytes() == originals[uid].read_bytes() for uid, path in came.items())


def test_a_destination_that_is_busy_is_one_that_is_away(pacs: Orthanc) -> None:
    with proxying(pacs.url, answers=[(503, 0)]) as proxy:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="503"):
            Dicomweb(f"{proxy.url}/dicom-web").store(REAL[:1])
        assert time.monotonic() - began < 2
        Dicomweb(f"{proxy.url}/dicom-web").store(REAL[:1])


def test_what_a_destination_refuses_together_comes_one_by_one(pacs: Orthanc, tmp_path: Path) -> None:
    series = t2_series(3)
    paths = [tmp_path / f"{one.SOPInstanceUID}.dcm" for one in series]
    for path, instance in zip(paths, series, strict=True):
        instance.save_as(path, enforce_file_format=True)
    with proxying(pacs.url, answers=[(400, 0), (409, 0)]) as proxy:  # to all, then to the first alone
        ((refused, reason),) = Dicomweb(f"{proxy.url}/dicom-web").store(paths).items()
        assert (refused, "409" in reason, len(proxy.seen)) == (paths[0], True, 4)
    stored = pacs.instances(StudyInstanceUID=str(series[0].StudyInstanceUID))
    assert {str(one["MainDicomTags"]["SOPInstanceUID"]) for one in stored} == {path.stem for path in paths[1:]}  # type: ignore[index]


@pytest.mark.parametrize("name", ["dicomweb", "get"])
def test_a_pacs_may_die_and_the_pull_be_killed_and_what_is_missing_comes_later(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Orthanc(tmp_path / "orthanc") as pacs:
        study = add(
            pacs,
            *(
                t2_series(40, PatientID="P-1", StudyInstanceUID="1.2.3.4", SeriesInstanceUID=f"1.2.3.4.{n}")
                for n in range(5)
            ),
        )
        options = (*source(name, pacs), f"--study={study}", f"--out={out}", "--jobs=1")
        with started(*options, "--retries=1") as pull:
            wait_for(lambda: count(out) > 5)
            pacs.kill()
            _, told = pull.communicate(timeout=60)
            assert (pull.returncode in (1, 3), "P-1" in told) == (True, False)
        assert 5 < count(out) < 200
        pacs.start()
        with started(*options) as pull:
            before = count(out)
            wait_for(lambda: count(out) > before)
            pull.kill()
        assert count(out) < 200
        (next(out.glob("*/*")) / ".1.2.3.dcm.0123456789abcdef").write_bytes(b"half")
        with started(*options) as pull:
            pacs.kill()
            time.sleep(1)
            pacs.start()
            assert pull.wait(timeout=60) == 0
        stored = {str(one["MainDicomTags"]["SOPInstanceUID"]): str(one["ID"]) for one in pacs.instances()}  # type: ignore[index]
        came = files(out)
        assert came.keys() == stored.keys()
        assert all(dcmread(path).PixelData for path in came.values())


def test_one_pull_at_a_time_fills_a_folder(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    options = [*source("dicomweb", pacs), f"--study={STUDIES[0]}", "--all-series", f"--out={tmp_path}"]
    code, _, err = limner("pull", *options)
    assert (code, "is being filled by another pull" in err) == (1, True)
    folder.close()
    assert limner("pull", *options)[0] == 0


def test_more_studies_than_meant_are_refused(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    code, _, err = limner("pull", *source("get", pacs), "--query=PatientID=*", f"--out={tmp_path}", "--limit=1")
    assert code == 2
    assert "query by PatientID matches" in err
    assert not files(tmp_path)


def test_a_pacs_that_does_not_know_us_says_so(pacs: Orthanc, limner: Run, tmp_path: Path) -> None:
    options = [*source("move", pacs), f"--study={STUDIES[0]}", "--all-series", f"--out={tmp_path}"]
    code, _, err = limner("pull", *options, "--aet=STRANGER", "--retries=0")
    assert (code, "STRANGER" in err) == (1, True)
    with Orthanc(tmp_path / "taken") as other:
        code, _, err = limner("pull", *options, f"--port={other.dicom_port}")
        assert (code, "in use" in err) == (1, True)


@pytest.mark.parametrize("name", ["dicomweb", "get"])
def test_nobody_there_ends_with_3(name: str, pacs: Orthanc, limner: Run) -> None:
    place = f"127.0.0.1:{free_port()}"
    where = f"--dicomweb=http://{place}/dicom-web" if name == "dicomweb" else f"--pacs=ORTHANC@{place}"
    code, _, err = limner("pull", where, "--query=PatientID=P-1", "--dry-run", "--retries=1")
    assert (code, place in err, "P-1" in err) == (3, True, False)
