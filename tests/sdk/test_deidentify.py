"""De-identifying a folder: resumed after an end at any point, each failure named, and the way back kept here."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000, SecondaryCaptureImageStorage

from limner.deidentified_folder import deidentify_folder
from limner.errors import InvalidInputError
from limner.imaging import Pseudonymiser, PseudonymMap, Retain, find_series
from tests.imaging.builders import DATA, SMALL, content, mr_instance, write_series
from tests.imaging.malformed import relabelled

KEY = bytes(range(32))


@pytest.fixture
def names(tmp_path: Path) -> PseudonymMap:
    return PseudonymMap(KEY, tmp_path / "who.csv")


def outputs(folder: Path) -> dict[str, int]:
    """Each file and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.dcm")}


def test_real_images_leave_as_the_series_that_they_were(names: PseudonymMap, tmp_path: Path) -> None:
    seen: list[None] = []
    done = deidentify_folder(DATA, tmp_path / "out", names, [Retain.DESCRIPTIONS], lambda: seen.append(None))
    assert (done.written, done.unchanged, done.failed) == (len(seen), 0, ())
    before, after = find_series(DATA).series, find_series(tmp_path / "out").series
    described = [(one.description, one.plane, len(one.slices), one.echo_time_ms) for one in before]
    assert sorted(described) == sorted((one.description, one.plane, len(one.slices), one.echo_time_ms) for one in after)
    assert {one.patient_id for one in after} == {Pseudonymiser(KEY).subject(one.patient_id) for one in before}
    places = {path.relative_to(tmp_path / "out").parts[:2] for path in (tmp_path / "out").rglob("*.dcm")}
    assert places == {(one.patient_id, one.series_uid) for one in after}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("**/")} == {0o700}


def test_the_map_leads_back(names: PseudonymMap, tmp_path: Path) -> None:
    deidentify_folder(DATA, tmp_path / "out", names)
    with names.path.open(newline="", encoding="utf-8") as file:
        original = {row["pseudonym"]: row["original"] for row in csv.DictReader(file)}
    for path in (tmp_path / "out").rglob("*.dcm"):
        one = dcmread(path)
        (source,) = (
            found for found in DATA.rglob("*.dcm") if dcmread(found).SOPInstanceUID == original[one.SOPInstanceUID]
        )
        assert original[one.PatientID] == dcmread(source).PatientID
        assert original[one.StudyInstanceUID] == dcmread(source).StudyInstanceUID


def test_again_changes_nothing_and_other_options_write_again(names: PseudonymMap, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_series(source, 3)
    deidentify_folder(source, out, names)
    first = outputs(out)
    assert deidentify_folder(source, out, names).unchanged == 3
    assert outputs(out) == first
    assert deidentify_folder(source, out, names, [Retain.DATES]).written == 3
    next(iter(out.rglob("*.dcm"))).write_bytes(b"cut off by another program")
    assert deidentify_folder(source, out, names, [Retain.DATES]).written == 1


def test_what_fails_is_named_and_takes_nothing_down(names: PseudonymMap, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_series(source, 2)
    bad = {
        "capture": ({"SOPClassUID": SecondaryCaptureImageStorage}, "SOPClassUID is Secondary Capture Image Storage"),
        "text": ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        "nobody": ({"PatientID": ""}, "PatientID is missing"),
        "lost": ({"SeriesInstanceUID": None}, "SeriesInstanceUID is missing"),
    }
    for name, (changes, _) in bad.items():
        mr_instance(SMALL, **changes).save_as(source / f"{name}.dcm", enforce_file_format=True)
    (source / "cut.dcm").write_bytes((source / "1.dcm").read_bytes()[:300])
    (source / "mislabelled.dcm").write_bytes(relabelled(content(mr_instance(SMALL)), JPEG2000))
    (source / "gone.dcm").symlink_to(source / "nowhere")
    (source / "notes.txt").write_text("notes")
    done = deidentify_folder(source, tmp_path / "out", names)
    assert (done.written, done.other) == (2, (source / "notes.txt",))
    reasons = {path.stem: reason for path, reason in done.failed}
    assert reasons.keys() == bad.keys() | {"cut", "gone", "mislabelled"}
    for name, (_, reason) in bad.items():
        assert reasons[name].startswith(reason)
    assert len(outputs(tmp_path / "out")) == 2


def test_what_would_mix_in_and_out_is_refused(names: PseudonymMap, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="existing folder"):
        deidentify_folder(tmp_path / "none", tmp_path / "out", names)
    with pytest.raises(InvalidInputError, match="a folder outside"):
        deidentify_folder(DATA, DATA / "out", names)
    with pytest.raises(InvalidInputError, match="it tells who is who"):
        deidentify_folder(DATA, tmp_path, names)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "limner.cli.main", "deidentify", *map(str, arguments)]


def test_the_command_says_what_it_did_and_where_the_map_is(tmp_path: Path) -> None:
    source, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "site.key"
    source.mkdir()
    write_series(source, 2)
    (source / "notes.txt").write_text("notes")
    ended = subprocess.run(command(source, "--out", out, "--key", key), capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        f"left out: {source / 'notes.txt'}: not DICOM",
        f"2 images written, 0 there already, 0 failed; who is who: {tmp_path / 'site.csv'}, which stays here",
    ]
    mr_instance(SMALL, BurnedInAnnotation="YES").save_as(source / "text.dcm", enforce_file_format=True)
    again = command(source, "--out", out, "--key", key, "--json", "--retain", "device")
    ended = subprocess.run(again, capture_output=True, text=True, check=False)
    fields = json.loads(ended.stdout)
    assert (ended.returncode, fields["written"], len(fields["failed"])) == (1, 2, 1)
    assert fields["failed"][0]["name"] == str(source / "text.dcm")


def test_a_folder_without_dicom_is_wrong_input(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "notes.txt").write_text("notes")
    again = command(source, "--out", out, "--key", tmp_path / "site.key")
    ended = subprocess.run(again, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"left out: {source / 'notes.txt'}: not DICOM",
        f"error: folder is {source}; expected a folder with DICOM images, of which none was found",
    ]
    assert not out.exists()


def test_a_run_that_is_killed_is_resumed_and_no_output_is_without_its_names(tmp_path: Path) -> None:
    source, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "site.key"
    for series in range(20):
        (source / str(series)).mkdir(parents=True)
        write_series(source / str(series), 10, SeriesInstanceUID=f"1.2.{series}")
    process = subprocess.Popen(command(source, "--out", out, "--key", key), stderr=subprocess.DEVNULL)
    while len(outputs(out)) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    written = outputs(out)
    assert 20 <= len(written) < 200
    known = (tmp_path / "site.csv").read_text()
    assert all(Path(name).stem in known for name in written)
    assert all(dcmread(out / name).PixelData for name in written)
    subprocess.run(command(source, "--out", out, "--key", key), stderr=subprocess.DEVNULL, check=True)
    after = outputs(out)
    assert len(after) == 200
    assert written.items() <= after.items()
