"""Collections as they lie on disk after a download, with the tables published for them, through the command."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid
from typer.testing import CliRunner, Result

from limner.cli.main import app
from limner.cohort_flow import read_flow
from limner.cohort_import import FolderImport, label_slices, survey_folder
from limner.errors import InvalidInputError
from limner.imaging import Pseudonymiser
from limner.presets import PRESETS
from limner.v1.cohort_pb2_grpc import add_CohortServiceServicer_to_server as add_cohorts
from tests.imaging.builders import mr_instance
from tests.sdk.servers import Cohorts, serving

KEY = bytes(range(32))
DATA = Path(__file__).parents[1] / "data" / "clinical"
GDC = (DATA / "clinical.tsv", DATA / "follow_up.tsv")
PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)
SLICES = 5
# By PatientID: A001 recurred, A002 did not, A003 was censored early, X999 is in no table.
PATIENTS = ("TCGA-ZZ-A001", "tcga-zz-a002", "tcga-zz-a003", "TCGA-ZZ-X999")
Layout = Callable[[str, str, str, int], str]


def descriptive(patient: str, study: str, series: str, number: int) -> str:
    """NBIA Data Retriever, descriptive directory names."""
    return f"TCGA-CESC/{patient}/03-06-2005-NA-MR1-{study[-5:]}/4.000000-SAG T2-{series[-5:]}/1-{number:02d}.dcm"


def classic(patient: str, study: str, series: str, number: int) -> str:
    """NBIA Data Retriever, classic directory names."""
    return f"TCGA-CESC/{patient}/{study}/{series}/00000{number}.dcm"


def idc(patient: str, study: str, series: str, number: int) -> str:
    """What s5cmd and `idc download` make."""
    return f"tcga_cesc/{patient.lower()}/{study}/MR_{series}/0a1b2c3d-0000-4000-8000-{number:012d}.dcm"


def download(folder: Path, layout: Layout) -> Path:
    """Write one T2-weighted series of each patient, and the files that lie among them."""
    for patient in PATIENTS:
        study, series = generate_uid(entropy_srcs=[patient]), generate_uid(entropy_srcs=[patient, "t2"])
        for number in range(SLICES):
            path = folder / layout(patient, study, series, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            instance = mr_instance(
                PIXELS,
                PatientID=patient,
                StudyInstanceUID=study,
                SeriesInstanceUID=series,
                InstanceNumber=number,
                ImagePositionPatient=[0, 0, 4 * number],
            )
            instance.save_as(path, enforce_file_format=True)
    (folder / "metadata.csv").write_text("Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID\n")
    (folder / "TCGA-CESC.s5cmd").write_text("cp s3://idc-open-data/0/* .\n")
    # The licence lies in the folder of its collection.
    (next(path for path in folder.iterdir() if path.is_dir()) / "LICENSE").write_text("CC BY 3.0\n")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return download(tmp_path / "manifest-1655581046477", descriptive)


def labelled(folder: Path, labels: dict[str, str]) -> FolderImport:
    return label_slices(survey_folder(folder), labels, allow_missing=True, key=KEY)


@pytest.mark.parametrize("layout", [descriptive, classic, idc])
def test_every_layout_holds_the_same_series_and_what_is_no_dicom_is_counted(tmp_path: Path, layout: Layout) -> None:
    survey = survey_folder(download(tmp_path / "download", layout))
    assert [(one.series.patient_id, len(one.series.slices)) for one in survey.decisions if one.accepted] == [
        (patient, SLICES) for patient in sorted(PATIENTS)
    ]
    assert {path.name: reason for path, reason in survey.unreadable} == dict.fromkeys(
        ("metadata.csv", "TCGA-CESC.s5cmd", "LICENSE", "manifest.json"), "not DICOM"
    )


def test_a_broken_dicom_file_is_told_from_what_never_was_one(collection: Path) -> None:
    broken = next(collection.rglob("1-00.dcm"))
    broken.write_bytes(broken.read_bytes()[128:])
    planned = labelled(collection, {"TCGA-ZZ-A001": "a", "TCGA-ZZ-A002": "b"})
    assert len(planned.grouped["not DICOM"]) == 4
    assert planned.grouped["file is not DICOM"] == [str(broken)]


def test_subjects_match_without_regard_to_case_and_have_one_pseudonym(collection: Path) -> None:
    planned = labelled(collection, {"TCGA-ZZ-A001": "a", "TCGA-ZZ-A002": "b"})
    assert planned.subjects == {"TCGA-ZZ-A001": "a", "TCGA-ZZ-A002": "b"}
    again = labelled(collection, {"tcga-zz-a001": "a", "TCGA-ZZ-A002": "b"})
    names = {(one.instance, one.subject) for one in planned.plan.slices}
    assert {(one.instance, one.subject) for one in again.plan.slices} == names
    # Pseudonyms are of the headers' spelling, so that whoever reads the folder again finds them.
    assert Pseudonymiser(KEY).subject("tcga-zz-a002") in {one.subject for one in planned.plan.slices}
    # A second study under the other spelling is the same woman.
    second = mr_instance(PIXELS, PatientID="TCGA-ZZ-A002", SeriesInstanceUID="1.9", StudyInstanceUID="1.8")
    for number in range(SLICES):
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = f"1.9.{number + 1}"
        second.save_as(collection / f"second-{number}.dcm", enforce_file_format=True)
    both = labelled(collection, {"TCGA-ZZ-A001": "a", "TCGA-ZZ-A002": "b"})
    assert len({one.subject for one in both.plan.slices}) == 2
    assert len(both.plan.slices) == 3 * SLICES


def test_two_subjects_that_differ_only_in_case_are_refused(collection: Path) -> None:
    with pytest.raises(InvalidInputError, match="subjects 'P1' and 'p1' differ only in case; expected one spelling"):
        labelled(collection, {"P1": "a", "p1": "b"})


def limner(*arguments: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_labels_are_written_and_the_flow_is_printed(tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    result = limner("cohort", "labels", "--preset", "tcga-cesc-gdc", *GDC, "--out", out)
    assert result.exit_code == 0
    assert re.search(r"read\W+10\b", result.stdout)
    assert re.search(r"excluded: censored early\W+1\W+TCGA-ZZ-A003", result.stdout)
    assert re.search(r"│ recurrent\W+3\b", result.stdout)
    assert "labels.flow.json" in result.stderr
    shown = json.loads(
        limner(
            "cohort", "labels", "--preset", "tcga-cesc-gdc", *GDC, "--out", out, "--within-months", 24, "--json"
        ).stdout
    )
    assert shown["labels"] == {"non-recurrent": 3, "recurrent": 1}
    assert json.loads((tmp_path / "labels.flow.json").read_text())["within_months"] == 24


def test_a_file_says_which_subjects_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("\ufeffTCGA-ZZ-A001\n\n TCGA-ZZ-A002 \n", encoding="utf-8")
    command = ("--preset", "tcga-cesc-gdc", *GDC, "--out", tmp_path / "labels.csv", "--only", tmp_path / "only.txt")
    assert json.loads(limner("cohort", "labels", *command, "--json").stdout)["labels"] == {
        "non-recurrent": 1,
        "recurrent": 1,
    }


def test_the_presets_and_their_rules_are_listed() -> None:
    listed = limner("cohort", "labels", "--list").stdout
    for preset in PRESETS:
        assert preset.name in listed
        assert all(rule.sentence in listed for rule in preset.rules)
    presets = json.loads(limner("cohort", "labels", "--list", "--json").stdout)["presets"]
    assert [preset["name"] for preset in presets] == [preset.name for preset in PRESETS]


@pytest.mark.parametrize(
    "arguments",
    [
        ("labels",),
        ("labels", "--preset", "tcga-cesc-gdc", GDC[0]),
        ("import", ".", "--preset", "tcga-cesc-gdc"),
        ("import", ".", "--table", GDC[0]),
        ("import", ".", "--labels", "x.csv", "--preset", "tcga-cesc-gdc", "--table", GDC[0]),
        ("import", ".", "--label-by", "plane", "--preset", "tcga-cesc-gdc", "--table", GDC[0]),
        ("import", ".", "--dry-run", "--flow", "flow.json"),
    ],
)
def test_wrong_usage_is_refused(arguments: tuple[object, ...]) -> None:
    result = limner("cohort", *arguments)
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


def test_one_step_from_a_download_to_a_cohort_and_its_flow(collection: Path, tmp_path: Path) -> None:
    flow = tmp_path / "flow.json"
    tables = [argument for table in GDC for argument in ("--table", table)]
    (tmp_path / "key").write_text(KEY.hex())
    with serving(add_cohorts, Cohorts()) as address:
        result = limner(
            *("cohort", "import", collection, "--preset", "tcga-cesc-gdc", *tables, "--positive", "recurrent"),
            *("--flow", flow, "--key", tmp_path / "key", "--server", address),
        )
    assert result.exit_code == 0
    assert "10 slices added" in result.stderr
    assert "left out, 4 times not DICOM: " in result.stderr
    assert "left out, 3 times no images: subject TCGA-ZZ-A007, subject TCGA-ZZ-A008" in result.stderr
    found = read_flow(flow)
    excluded = {group.reason: len(group.subjects) for group in found.excluded}
    assert found.labels == {"non-recurrent": 1, "recurrent": 1}
    # A003 has images, but the rules had left her out already; X999 is in no table.
    assert (excluded["no images"], excluded["no label"], excluded["censored early"]) == (3, 1, 1)
    assert found.read == 11 == sum(found.labels.values()) + sum(excluded.values())


def test_json_tells_series_labels_and_every_file_left_out(collection: Path, tmp_path: Path) -> None:
    tables = [argument for table in GDC for argument in ("--table", table)]
    (tmp_path / "key").write_text(KEY.hex())
    command = ("import", collection, "--preset", "tcga-cesc-gdc", *tables, "--dry-run", "--key", tmp_path / "key")
    shown = json.loads(limner("cohort", *command, "--json").stdout)
    assert shown["labelling"]["labels"] == {"non-recurrent": 2, "recurrent": 3}
    assert sum(one["reason"] == "not DICOM" for one in shown["skipped"]) == 4


def test_the_flow_of_the_labels_is_taken_up_where_it_lies_beside_them(collection: Path, tmp_path: Path) -> None:
    out, flow = tmp_path / "labels.csv", tmp_path / "flow.json"
    (tmp_path / "key").write_text(KEY.hex())
    limner("cohort", "labels", "--preset", "tcga-cesc-gdc", *GDC, "--out", out)
    command = ("cohort", "import", collection, "--labels", out, "--allow-missing", "--dry-run", "--flow", flow)
    assert limner(*command, "--key", tmp_path / "key").exit_code == 0
    assert (read_flow(flow).preset, read_flow(flow).read) == ("tcga-cesc-gdc", 11)
    (tmp_path / "labels.flow.json").unlink()
    assert limner(*command, "--key", tmp_path / "key").exit_code == 0
    # Without it, what was read are the labels (5) and whoever has images and none (2).
    assert (read_flow(flow).preset, read_flow(flow).read) == ("", 7)


@pytest.mark.parametrize(("content", "said"), [("{}", "read: Field required"), ("x", "Invalid JSON")])
def test_a_flow_that_is_none_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "labels.flow.json").write_text(content)
    with pytest.raises(InvalidInputError, match=said):
        read_flow(tmp_path / "labels.flow.json")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_flow(tmp_path / "none.json")


def test_labels_by_hand_go_on_working(tmp_path: Path, collection: Path) -> None:
    out = tmp_path / "labels.csv"
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([("subject", "label"), ("TCGA-ZZ-A001", "ill"), ("TCGA-ZZ-A002", "well")])
    shutil.copy(out, collection / "labels.csv")
    planned = label_slices(survey_folder(collection), out, key=KEY)
    assert planned.plan.labels == ("ill", "well")
    assert planned.left_out == {f"{name}": f"no label; {SLICES} slices left out" for name in PATIENTS[2:]}
