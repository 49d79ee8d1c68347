"""Real T2-weighted series over the wire: import, a classifier of the plane, DICOM out."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from limner import Client, Image, plan_import
from limner.images import SendDicom
from limner.imaging import Importance, ModelReference, Range, decode, default_rules, heat_map_dicom
from limner.types import FeatureOptions, Grid, JobState, TrainingConfig
from tests.live import LiveServer

DATA = Path(__file__).parent.parent / "data" / "prostatex"
WAYS: tuple[SendDicom, ...] = (False, True, "identified")
RULES = default_rules().model_copy(update={"slices": Range(min=3), "planes": frozenset({"transverse", "sagittal"})})


@pytest.fixture(scope="module")
def slices() -> list[Image]:
    return [Image(path, id=path.name, subject=path.parts[-3]) for path in sorted(DATA.glob("*/t2-*/*.dcm"))]


def test_the_plane_of_real_slices_is_learned_with_subjects_kept_apart(
    client: Client, key: bytes, slices: list[Image]
) -> None:
    """The label is the slice's, from ImageOrientationPatient; each fold is one patient's.

    Six slices of one patient do not make a classifier of another's: what is asked is that all twelve are learned.
    """
    found = plan_import(DATA, rules=RULES, key=key)
    assert {reason.split(" is ")[0] for decision in found.survey.decisions for reason in decision.reasons}
    assert [decision.series.description for decision in found.survey.decisions if not decision.accepted] == [
        "ep2d_diff_tra_DYNDIST_ADC",
        "localizer",
    ]
    imported = client.import_cohort("planes", found.plan)
    assert (imported.added, imported.rejected) == (12, ())
    config = TrainingConfig(grid=Grid(fov_mm=160, size=32), folds=2, epochs=25, batch_size=6, halves=False)
    training = client.train("planes", "plane", config)
    assert training.state is JobState.SUCCEEDED, training.error
    folds = {(item["subject"], item["fold"]) for item in client.model("plane").card["out_of_fold"]}
    assert len(folds) == len({fold for _, fold in folds}) == 2
    predicted = client.predict("plane", [str(image.content) for image in slices]).results
    said = [result.prediction.label if result.prediction else "" for result in predicted]
    assert said == ["sagittal" if "sagittal" in str(image.content) else "transverse" for image in slices]


def test_a_phantoms_model_answers_real_slices_and_its_heat_maps_return_as_dicom(
    client: Client, model: str, slices: list[Image], tmp_path: Path
) -> None:
    predicted = client.predict(model, slices)
    assert [result.error for result in predicted.results] == [None] * 12
    assert [subject.images for subject in predicted.subjects] == [6, 6]
    reply = client.extract_features(model, slices[3], FeatureOptions(heat_maps=True))
    (result,) = reply.results
    heat_map = result.layers[0].source_heat_map
    source = pydicom.dcmread(str(slices[3].content))
    assert heat_map is not None
    assert heat_map.shape == (source.Rows, source.Columns) == (384, 384)
    path = tmp_path / "heat.dcm"
    reference = ModelReference(reply.model.name, reply.model.version, reply.model.digest)
    importance = Importance(reference, result.target, result.layers[0].layer, reply.method)
    heat_map_dicom(path, source, heat_map, importance)
    written = pydicom.dcmread(path)
    assert written.StudyInstanceUID == source.StudyInstanceUID
    assert written.PatientID == source.PatientID
    assert written.pixel_array.shape[1:] == (384, 3)
    assert written.Rows > 384  # a legend is below


def test_nothing_that_identifies_a_patient_is_kept_by_the_server(
    client: Client, server: LiveServer, model: str, slices: list[Image]
) -> None:
    """A real file with planted names, sent as the SDK sends by default and as whole files: the server keeps none."""
    dataset = pydicom.dcmread(str(slices[0].content))
    planted = {"PatientName": "SECRET^NAME", "PatientID": "SECRET-ID", "AccessionNumber": "SECRET-ACC"}
    for keyword, value in planted.items():
        setattr(dataset, keyword, value)
    for send_dicom in WAYS:
        (result,) = client.predict(model, Image(dataset, id="SECRET-FILE"), send_dicom=send_dicom).results
        assert result.error is None
        assert result.id == "SECRET-FILE"
    kept = [path for path in server.folder.rglob("*") if path.is_file()]
    assert [path for path in kept if b"SECRET" in path.read_bytes()] == []


def test_a_center_moves_the_grid(client: Client, model: str, slices: list[Image]) -> None:
    image = decode(Path(str(slices[3].content)))
    grid = client.model(model).grid
    assert grid is not None
    center = (100.0, 250.0)
    (moved,) = client.predict(model, Image(image, center=center)).results
    (expected,) = client.predict(model, grid.resample(image, center)).results
    assert moved.prediction is not None
    assert expected.prediction is not None
    np.testing.assert_allclose(moved.prediction.logits, expected.prediction.logits, atol=1e-4)
