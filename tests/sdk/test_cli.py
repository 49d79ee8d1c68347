"""The command: its output, its exit codes, its one-line errors."""

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image as Picture

from limner.v1 import model_pb2, simulation_pb2, training_pb2
from limner.v1.cohort_pb2_grpc import add_CohortServiceServicer_to_server as add_cohorts
from limner.v1.feature_pb2_grpc import add_FeatureServiceServicer_to_server as add_features
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from limner.v1.model_pb2_grpc import add_ModelServiceServicer_to_server as add_models
from limner.v1.simulation_pb2_grpc import add_SimulationServiceServicer_to_server as add_simulations
from limner.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server as add_trainings
from tests.conftest import Run
from tests.imaging.builders import write_series
from tests.sdk.servers import IDENTITY, Cohorts, Features, Inference, Models, Simulations, Trainings, serving

NOTICE = "research use only, not for diagnostic use"


def test_version_and_help_say_what_it_is_for(limner: Run) -> None:
    assert NOTICE in limner("--version")[1]
    code, out, _ = limner("--help")
    assert code == 0
    assert "not for" in out
    for command in (
        "phantom",
        "select",
        "deidentify",
        "cohort",
        "train",
        "predict",
        "features",
        "simulate",
        "report",
        "models",
        "gateway",
        "pull",
    ):
        assert command in out
        assert limner(command, "--help")[0] == 0


def test_wrong_usage_ends_with_2(limner: Run) -> None:
    assert limner("nonsense")[0] == 2
    assert limner("phantom")[0] == 2
    assert limner("train", "--epochs", "many", "c", "m")[0] == 2


def test_no_server_ends_with_3_and_one_line(limner: Run) -> None:
    code, out, err = limner("models", "list", "--server", "localhost:1")
    assert (code, out) == (3, "")
    assert err.startswith("error: no Limner server answers at localhost:1")
    assert err.count("\n") == 1


def test_what_the_server_refuses_ends_with_2_and_what_fails_with_1(limner: Run) -> None:
    with serving(add_cohorts, Cohorts()) as address:
        code, _, err = limner("cohort", "show", "nobody", "--server", address)
    assert (code, err) == (2, "error: no cohort 'nobody'\n")
    with serving(add_models, Models(failures=9, code=9)) as address:
        code, _, err = limner("models", "delete", "m:3", "--server", address)
    assert (code, err) == (1, "error: not now\n")


def test_a_phantom_and_its_dry_run(limner: Run, tmp_path: Path) -> None:
    code, out, _ = limner("phantom", tmp_path / "p", "--subjects", 2, "--json")
    assert code == 0
    assert json.loads(out)["subjects"] == 2
    labels = tmp_path / "p" / "labels.csv"
    code, out, err = limner(
        "cohort", "import", tmp_path / "p", "--labels", labels, "--dry-run", "--key", tmp_path / "k"
    )
    assert code == 0
    assert out.count("taken") == 2
    assert "recurrent" in err
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


def test_a_dry_run_without_labels_judges_the_series(limner: Run, phantom: Path) -> None:
    code, out, _ = limner("cohort", "import", phantom, "--dry-run", "--plane", "coronal", "--json")
    series = json.loads(out)["series"]
    assert code == 0
    assert {one["subject"] for one in series} == {f"PH-{n:03d}" for n in range(6)}
    assert not any(one["taken"] for one in series)
    assert all(one["reasons"] == ["plane is transverse; expected coronal"] for one in series)


def test_a_selection_tells_the_decision_and_every_verdict_when_asked(limner: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    for number, echo_time in enumerate((100, 12)):
        (tmp_path / str(number)).mkdir()
        write_series(tmp_path / str(number), EchoTime=echo_time, SeriesInstanceUID=f"1.2.{number}")
    code, out, err = limner("select", tmp_path)
    assert code == 0
    assert [line.split("│")[-2].strip() for line in out.splitlines() if "t2_tse" in line] == ["taken", "left out"]
    assert err == f"left out: {tmp_path / 'notes.txt'}: not DICOM\n1 of 2 series taken; --explain says why\n"
    _, out, _ = limner("select", tmp_path, "--explain")
    taken, left, _ = out.split("\n\n")
    assert taken.splitlines()[0] == "patient  t2_tse  transverse, 5 slices: taken"
    assert "  passed  echo time          100 ms; expected at least 60 ms" in taken
    assert "failed" not in taken
    assert "  failed  echo time          12 ms; expected at least 60 ms" in left
    _, text, _ = limner("select", tmp_path, "--json")
    first, second = json.loads(text)["series"]
    assert (first["taken"], second["taken"]) == (True, False)
    assert {rule["rule"] for rule in second["rules"] if not rule["passed"]} == {"echo time"}


def test_a_selection_from_a_folder_without_dicom_is_wrong_input(limner: Run, tmp_path: Path) -> None:
    error = f"error: folder is {tmp_path}; expected a folder with DICOM images, of which none was found\n"
    assert limner("select", tmp_path) == (2, "", error)
    (tmp_path / "notes.txt").write_text("notes")
    assert limner("select", tmp_path) == (2, "", f"left out: {tmp_path / 'notes.txt'}: not DICOM\n{error}")
    code, out, err = limner("select", tmp_path, "--json")
    assert (code, json.loads(out)["series"], err) == (2, [], error)


def test_the_defaults_are_a_file_to_start_from(limner: Run, phantom: Path, tmp_path: Path) -> None:
    _, text, _ = limner("select", "--defaults")
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    assert limner("select", phantom, "--json")[1] == limner("select", phantom, "--json", "--rules", rules)[1]
    rules.write_text("planes: [coronal]")
    code, text, _ = limner("cohort", "import", phantom, "--dry-run", "--rules", rules, "--json")
    assert code == 0
    assert {tuple(one["reasons"]) for one in json.loads(text)["series"]} == {("plane is transverse; expected coronal",)}
    rules.write_text("planes: [up]")
    for command in (("select", phantom), ("cohort", "import", phantom, "--dry-run"), ("predict", "m", phantom)):
        code, _, err = limner(*command, "--rules", rules)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: rules {rules}: planes.0 is 'up'; expected 'transverse',")
    assert limner("select")[0] == 2


def test_rules_choose_the_series_of_a_folder_and_not_the_files_named(
    limner: Run, phantom: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("description: {leave: {t2: t2}}")
    one = phantom / "PH-000" / "0001.dcm"
    with serving(add_inference, Inference()) as address:
        command = ("predict", "m", phantom / "PH-001", one, "--rules", rules, "--json", "--server", address)
        _, text, err = limner(*command)
        rules.write_text("modality: [MR]")
        _, every, _ = limner(*command)
    assert [result["id"] for result in json.loads(text)["results"]] == [str(one)]
    assert "of PH-001 (transverse, 12 slices): description is" in err
    ids = {result["id"] for result in json.loads(every)["results"]}
    assert ids == {str(one), *map(str, (phantom / "PH-001").glob("*.dcm"))}


def test_an_import_needs_labels(limner: Run, phantom: Path) -> None:
    assert limner("cohort", "import", phantom)[0] == 2
    assert limner("cohort", "import", phantom, "--labels", "x.csv", "--label-by", "plane")[0] == 2


def test_an_import_is_reported_and_repeated_without_effect(limner: Run, phantom: Path, tmp_path: Path) -> None:
    command = ("cohort", "import", phantom, "--name", "c", "--labels", phantom / "labels.csv", "--key", tmp_path / "k")
    with serving(add_cohorts, Cohorts()) as address:
        first = limner(*command, "--server", address)
        second = limner(*command, "--server", address, "--json")
    assert first[0] == second[0] == 0
    assert "72 slices added, 0 there already, 0 refused" in first[2]
    result = json.loads(second[1])["result"]
    assert (result["added"], result["unchanged"]) == (0, 72)


def test_refused_slices_end_with_1(limner: Run, phantom: Path, tmp_path: Path) -> None:
    command = ("cohort", "import", phantom, "--labels", phantom / "labels.csv", "--key", tmp_path / "k")
    cohorts = Cohorts()
    with serving(add_cohorts, cohorts) as address:
        limner(*command, "--server", address)
    with serving(add_cohorts, Cohorts(bad=tuple(cohorts.slices)[:1])) as address:
        code, _, err = limner(*command, "--server", address)
    assert code == 1
    assert "pixels are bad" in err


def test_predictions_as_table_json_and_csv(limner: Run, phantom: Path) -> None:
    folder, missing = phantom / "PH-000", phantom / "missing.dcm"
    with serving(add_inference, Inference()) as address:
        code, table, err = limner("predict", "m", folder, "--server", address)
        failed, text, _ = limner("predict", "m", folder, missing, "--server", address, "--json")
        _, rows, _ = limner("predict", "m", folder, "--server", address, "--csv")
    assert code == 0
    assert NOTICE in err
    assert "PH-000" in table
    assert failed == 1
    fields = json.loads(text)
    assert fields["notice"] == NOTICE
    assert len(fields["results"]) == 13
    assert fields["results"][-1]["error"]["code"] == "INVALID_ARGUMENT"
    assert fields["subjects"][0]["subject"] == "PH-000"
    table_rows = list(csv.DictReader(io.StringIO(rows)))
    assert len(table_rows) == 12
    assert float(table_rows[0]["p_loud"]) == pytest.approx(fields["results"][0]["prediction"]["probabilities"][1])


def test_what_lies_far_from_home_is_marked_and_counted(limner: Run, phantom: Path) -> None:
    with serving(add_inference, Inference(far=2)) as address:
        _, table, err = limner("predict", "m", phantom / "PH-000", "--server", address)
    with serving(add_inference, Inference(far=2)) as address:
        _, text, _ = limner("predict", "m", phantom / "PH-000", "--server", address, "--csv")
    with serving(add_inference, Inference()) as address:
        _, older, silent = limner("predict", "m", phantom / "PH-000", "--server", address, "--csv")
    assert "far from what the model was trained on: 2 of 12 slices" in err
    cells = [line.split("│")[-2].strip() for line in table.splitlines() if ".dcm" in line]
    assert cells == ["> 99 far"] * 2 + ["42"] * 10
    rows = list(csv.DictReader(io.StringIO(text)))
    told = [(row["distance"], row["distance_percentile"], row["far"]) for row in rows]
    assert told == [("1.5", "99.75", "1")] * 2 + [("1.5", "42.400001525878906", "0")] * 10
    assert "far from" not in silent, "of a model without reference nothing is told"
    assert {row["distance"] + row["far"] for row in csv.DictReader(io.StringIO(older))} == {""}


def test_what_is_no_dicom_in_a_folder_is_named(limner: Run, phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes((phantom / "PH-000" / "0001.dcm").read_bytes())
    (tmp_path / "notes.txt").write_text("notes")
    with serving(add_inference, Inference()) as address:
        code, _, err = limner("predict", "m", tmp_path, "--server", address)
    assert code == 0
    assert f"left out: {tmp_path / 'notes.txt'}: not DICOM" in err


def test_heat_maps_are_written_over_the_slices(limner: Run, phantom: Path, tmp_path: Path) -> None:
    files = sorted((phantom / "PH-001").glob("*.dcm"))[:2]
    command = ("features", "m", *files, "--layer", "stem", "--layer", "layer4", "--out", tmp_path, "--dicom", "--json")
    with serving(add_features, Features()) as address:
        code, out, _ = limner(*command, "--server", address)
    assert code == 0
    assert json.loads(out)["results"][1]["layers"][0]["top"][0]["map"] == [[0, 1, 2], [3, 4, 5]]
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.dcm"))) == 4
    picture = Picture.open(sorted(tmp_path.glob("*.png"))[0])
    source = pydicom.dcmread(files[0])
    assert picture.size == (source.Columns, source.Rows)
    red, _, blue = picture.getpixel((source.Columns // 2, 2))  # type: ignore[misc]
    assert red > blue
    captured = pydicom.dcmread(sorted(tmp_path.glob("*.dcm"))[0])
    assert captured.StudyInstanceUID == source.StudyInstanceUID


def test_heat_maps_as_dicom_need_a_folder(limner: Run, phantom: Path) -> None:
    assert limner("features", "m", phantom, "--dicom")[0] == 2


FAILED = simulation_pb2.Check(number=2, name="independent_judge", value=0.3, threshold=1, gate=True, ran=True)
PASSED = simulation_pb2.Check(number=1, name="own_verdict", value=0.9, threshold=0.5, gate=True, ran=True, passed=True)


def test_an_explanation_is_written_as_one(limner: Run, tmp_path: Path) -> None:
    simulations = Simulations(simulation_pb2.VERDICT_EXPLANATION, [PASSED])
    with serving(add_simulations, simulations) as address:
        code, _, err = limner("simulate", "m:3", "c", "--out", tmp_path / "s", "--steps", 10, "--server", address)
    assert code == 0
    assert NOTICE in err
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"result.json", "quiet.png", "quiet.dcm", "loud.png", "loud.dcm"}
    assert json.loads((tmp_path / "s" / "result.json").read_text())["verdict"] == "explanation"
    assert simulations.requests[0].steps == 10
    assert not simulations.requests[0].HasField("seed")


@pytest.mark.parametrize(
    ("verdict", "prefix"),
    [
        (simulation_pb2.VERDICT_FAILED_CHECK, "failed-check-2-independent_judge"),
        (simulation_pb2.VERDICT_UNCHECKED, "unchecked-2-independent_judge"),
    ],
)
def test_what_failed_is_written_only_when_asked_and_says_so(
    limner: Run, tmp_path: Path, verdict: int, prefix: str
) -> None:
    with serving(add_simulations, Simulations(verdict, [PASSED, FAILED])) as address:
        command = ("simulate", "m", "c", "--out", tmp_path, "--server", address)
        code, _, err = limner(*command)
        assert code == 1
        assert {path.name for path in tmp_path.iterdir()} == {"result.json"}
        assert "--allow-failed" in err
        code, _, err = limner(*command, "--allow-failed")
    assert code == 0
    assert {path.name for path in tmp_path.glob("*.dcm")} == {f"{prefix}-quiet.dcm", f"{prefix}-loud.dcm"}
    described = pydicom.dcmread(tmp_path / f"{prefix}-loud.dcm").DerivationDescription
    for said in (described, err):
        assert prefix.split("-2-")[0].replace("-", " ") in said
        assert "2 independent_judge 0.3, expected at least 1" in said


def test_a_training_is_followed_to_its_end_or_only_started(limner: Run) -> None:
    succeeded = Trainings([training_pb2.JOB_STATE_RUNNING, training_pb2.JOB_STATE_SUCCEEDED])
    with serving(add_trainings, succeeded) as address:
        code, out, _ = limner("train", "c", "m", "--epochs", 2, "--server", address, "--json")
        started, _, err = limner("train", "start", "c", "m", "--server", address)
    assert (code, json.loads(out)["state"]) == (0, "succeeded")
    assert succeeded.requests[0].config.epochs == 2
    assert (started, succeeded.watched) == (0, 1)
    assert "limner train watch t-1" in err
    with serving(add_trainings, Trainings([training_pb2.JOB_STATE_FAILED])) as address:
        assert limner("train", "watch", "t-1", "--server", address)[0] == 1


class Leaky(Models):
    """Has a model two of whose slices are alike, though of different subjects."""

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        evaluation = {"similar_found": 2, "permutation": {"p": 0.034}}
        found = super().GetModel(request, context)
        found.card_json = json.dumps({"evaluation": evaluation})
        return found


class Trained(Trainings):
    """Has trained it."""

    def WatchTraining(self, request: Any, context: Any) -> Iterator[training_pb2.Training]:
        for training in super().WatchTraining(request, context):
            training.result.CopyFrom(IDENTITY)
            yield training


def test_possible_leakage_is_told_with_the_metrics(limner: Run) -> None:
    def register(servicer: Trained, server: Any) -> None:
        add_models(Leaky(), server)
        add_trainings(servicer, server)

    with serving(register, Trained([training_pb2.JOB_STATE_SUCCEEDED])) as address:
        _, shown, _ = limner("models", "show", "m", "--server", address)
        _, _, err = limner("train", "watch", "t-1", "--server", address)
    assert "p 0.034" in shown
    assert "2 pairs of slices of different subjects look alike" in shown
    assert "possible leakage: 2 pairs of slices of different subjects look alike" in err


def hear_ctrl_c() -> None:
    """Undo what a shell does to jobs in its background: they and their children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_detaches_from_a_training_and_says_how_to_go_on() -> None:
    trainings = Trainings([training_pb2.JOB_STATE_RUNNING], hangs=True)
    with serving(add_trainings, trainings) as address:
        command = [sys.executable, "-m", "limner.cli.main", "train", "watch", "t-1", "--server", address]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
        )
        assert trainings.reported.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "detached; training t-1 goes on. Follow it again: limner train watch t-1\n")


def test_a_folder_that_cannot_be_made_is_one_line(limner: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = limner("phantom", tmp_path / "file" / "cohort", "--subjects", 1)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
