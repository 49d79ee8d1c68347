"""What goes back to a PACS, of series with all that real ones have: valid, in the right place, of the right patient."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from highdicom.pm.sop import ParametricMap, pmread
from highdicom.sr import Comprehensive3DSR, srread
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage, SecondaryCaptureImageStorage

from benchmarks.models import publish_untrained
from limner import Client
from limner.gateway import results
from limner.gateway.destinations import Destination, Dicomweb, Pacs
from limner.gateway.kinds import Kind
from limner.gateway.results import PICTURES, series_results
from limner.gateway.scoring import explain_series, score_study
from limner.gateway.structured_report import prediction_report
from limner.imaging import Range, default_rules
from limner.imaging.derived import write_dicom
from limner.imaging.headers import orientation, pixel_spacing, position
from limner.types import Distance
from tests.gateway.orthanc import PLUGIN, PROGRAM, Orthanc
from tests.gateway.series import JAPANESE, SERIES
from tests.imaging.builders import mr_instance
from tests.imaging.conformance import dicom_errors
from tests.live import LiveServer

ANY = default_rules().model_copy(update={"slices": Range(min=1)})
VALIDATOR = Path("/usr/share/java/pixelmed.jar")
OF_THE_SOURCE = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "StudyID", "AccessionNumber", "StudyDescription", "ReferringPhysicianName", "ProcedureCodeSequence"),
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore:The string:UserWarning")


class Made:
    """A series, its score, and every kind of result of it, written and read back."""

    def __init__(self, client: Client, name: str, folder: Path) -> None:
        self.name = name
        series = folder / "series"
        series.mkdir()
        SERIES[name](series)
        (self.score,) = score_study(client, "model", series, ANY).series
        self.results = series_results(client, self.score, list(Kind))
        self.files = [folder / f"{number}.dcm" for number, _ in enumerate(self.results.objects)]
        for path, result in zip(self.files, self.results.objects, strict=True):
            write_dicom(path, result)
        self.sources = {str(source.SOPInstanceUID): source for source in map(dcmread, series.iterdir())}
        self.all = [dcmread(path) for path in self.files]
        self.report: Comprehensive3DSR = srread(self.files[0])
        maps = [number for number, one in enumerate(self.all) if one.SOPClassUID == ParametricMapStorage]
        self.maps: list[ParametricMap] = [pmread(self.files[number]) for number in maps]
        self.pictures = [one for one in self.all if one.SOPClassUID == SecondaryCaptureImageStorage]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with LiveServer(tmp_path_factory.mktemp("server")) as live, Client(live.address) as client:
        publish_untrained(live.model_repository, "model", size=32)
        yield client


@pytest.fixture(scope="module", params=SERIES)
def made(request: pytest.FixtureRequest, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(client, request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def real(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(client, "real", tmp_path_factory.mktemp("real"))


def test_every_kind_is_made(made: Made) -> None:
    assert made.results.missing == []
    assert len(made.maps) == (2 if made.name in ("frames", "repeated", "split") else 1)
    assert sum(one.NumberOfFrames for one in made.maps) == len(made.score.scored)
    assert len(made.pictures) == PICTURES
    assert len(made.all) == 1 + len(made.maps) + PICTURES


def test_every_result_is_valid_but_for_what_is_wrong_with_its_source(made: Made) -> None:
    wrong = (
        ("Study Time", "Birth Date", "Patient's Sex", "contains invalid data values")
        if made.name == "malformed"
        else ()
    )
    for path in made.files:
        errors = dicom_errors(path)
        assert not {error for error in errors if not any(kept in error for kept in wrong)}
        assert bool(errors) == (made.name == "malformed")


@pytest.mark.skipif(
    not (shutil.which("dcmdump") and shutil.which("dsrdump")) and not os.environ.get("CI"),
    reason="needs Debian's dcmtk",
)
def test_dcmtk_reads_every_result(made: Made) -> None:
    for tool, files in (("dcmdump", made.files), ("dsrdump", made.files[:1])):
        for path in files:
            read = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=True)
            assert "E: " not in read.stderr


def test_every_result_is_of_the_sources_patient_and_study(made: Made) -> None:
    (source, *_) = made.sources.values()
    for result in made.all:
        assert result.SpecificCharacterSet == "ISO_IR 192"
        for keyword in OF_THE_SOURCE:
            assert result.get(keyword) == source.get(keyword) or not (result.get(keyword) or source.get(keyword))


def test_names_are_kept_in_every_script(client: Client, tmp_path: Path) -> None:
    made = Made(client, "japanese", tmp_path)
    for result in made.all:
        assert str(result.PatientName) == JAPANESE
        assert result.PatientName.phonetic == "やまだ^たろう"
        assert result.ProcedureCodeSequence[0].CodeMeaning == "やまだ^たろう"


def test_maps_lie_where_their_sources_do_and_hold_what_the_server_said(made: Made, client: Client) -> None:
    said = {(one.part.instance_uid, one.part.frame): one.values for one in explain_series(client, made.score).maps}
    for result in made.maps:
        shared = result.SharedFunctionalGroupsSequence[0]
        stored = result.get_frames()
        for values, groups in zip(stored, result.PerFrameFunctionalGroupsSequence, strict=True):
            (reference,) = groups.DerivationImageSequence[0].SourceImageSequence
            assert reference.SpatialLocationsPreserved == "YES"
            source = made.sources[reference.ReferencedSOPInstanceUID]
            frame = int(reference.get("ReferencedFrameNumber", 1)) - 1
            assert result.FrameOfReferenceUID == source.FrameOfReferenceUID
            assert groups.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(position(source, frame))
            assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == pytest.approx(
                orientation(source, frame)
            )
            assert shared.PixelMeasuresSequence[0].PixelSpacing == pytest.approx(pixel_spacing(source, frame))
            # Asked twice: a unit at its kink may be on in a batch of one size and off in another, worth 1e-3.
            np.testing.assert_allclose(values, said.pop((str(source.SOPInstanceUID), frame)), atol=1e-2)
    assert not said


def test_a_map_says_what_its_values_are(real: Made) -> None:
    (result,) = real.maps
    (mapping,) = result.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    texts = [
        str(item.get("TextValue") or item.ConceptCodeSequence[0].CodeMeaning)
        for item in mapping.QuantityDefinitionSequence
    ]
    label = real.score.subject.prediction.label  # type: ignore[union-attr]
    assert texts == ["Gradient-weighted class activation", "gradient x deviation", "layer2", label]
    assert result.DeviceSerialNumber == real.score.model.digest
    assert "NOT FOR DIAGNOSTIC USE" in result.DerivationDescription
    volume = result.get_volume()
    assert volume.spacing == pytest.approx((9, 0.5, 0.5), abs=1e-3)
    assert 0 <= volume.array.min() < volume.array.max() <= 1


def test_the_report_says_what_the_model_said(made: Made) -> None:
    subject = made.score.subject
    assert subject.prediction is not None
    (group,) = made.report.content.get_image_measurement_groups()
    measured = group.get_measurements()
    probabilities = {
        one[0].ContentSequence[0].value.meaning: one.value for one in measured if one.name == codes.DCM.Probability
    }
    assert probabilities == pytest.approx(
        dict(zip(made.score.labels, subject.prediction.probabilities, strict=True)), abs=1e-6
    )
    figures = {(one.name.meaning, one.derivation and one.derivation.meaning): one.value for one in measured}
    assert figures["Slices scored", None] == len(made.score.scored)
    assert figures["Slices far from the training cohort", None] == subject.far
    percentiles = [one.prediction.distance.percentile for _, one in made.score.scored]  # type: ignore[union-attr]
    name = "Percentile of the distance from the training cohort"
    assert figures[name, "Median"] == pytest.approx(np.median(percentiles), abs=0.01)
    assert figures[name, "Maximum"] == pytest.approx(max(percentiles), abs=0.01)
    said = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
    assert said["Classification"] == subject.prediction.label
    assert said["Far from the training cohort"] == ("Yes" if subject.far >= subject.images / 2 else "No")
    references = {one.referenced_sop_instance_uid for one in group.source_images}
    assert references == set(made.sources)


def test_the_report_names_the_model_its_calibration_and_its_heat_maps(real: Made, client: Client) -> None:
    tree = real.files[0].read_text(errors="ignore")
    card = client.model("model").card
    calibration = card["calibration"]
    for words in (
        *("RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE", f"sha256={real.score.model.digest}"),
        *(f"temperature={calibration['temperature']:.6g}", f"ece_after={calibration['ece_after']:.6g}"),  # type: ignore[index,call-overload]
        *(str(one.SOPInstanceUID) for one in real.results.objects[1:]),
    ):
        assert words in tree
    evidence = {reference[2] for reference in real.report.get_evidence()}
    assert evidence == {*real.sources, *(str(one.SOPInstanceUID) for one in real.results.objects[1:])}


@pytest.mark.parametrize(("percentiles", "said"), [((50, 50, 50), "No"), ((100, 100, 50), "Yes"), ((), "Unknown")])
def test_the_report_says_whether_the_series_is_far_from_home(
    real: Made, percentiles: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    distances = [Distance(value=1, percentile=one, far=one > 99) for one in percentiles] or [None] * 3
    changed = [
        result.model_copy(update={"prediction": result.prediction.model_copy(update={"distance": distance})})  # type: ignore[union-attr]
        for result, distance in zip(real.score.results, distances, strict=True)
    ]
    subject = real.score.subject.model_copy(update={"far": sum(one > 99 for one in percentiles)})
    report = prediction_report(replace(real.score, results=tuple(changed), subject=subject), real.sources, {})
    write_dicom(tmp_path / "report.dcm", report)
    (group,) = srread(tmp_path / "report.dcm").content.get_image_measurement_groups()
    evaluations = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
    assert evaluations["Far from the training cohort"] == said
    assert sum(one.unit == codes.UCUM.Percent for one in group.get_measurements()) == 2 * bool(percentiles)


@pytest.mark.skipif(not VALIDATOR.exists() and not os.environ.get("CI"), reason="needs Debian's pixelmed-apps")
def test_the_report_keeps_to_its_template(real: Made) -> None:
    """By PixelMed's validator of TID 1500, whose rules are too many for the default limits of Java."""
    limits = [f"-Djdk.xml.xpath{kind}Limit=0" for kind in ("ExprGrp", "ExprOp", "TotalOp")]
    command = ["java", *limits, "-cp", str(VALIDATOR), "com.pixelmed.validate.DicomSRValidator", str(real.files[0])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Found Root Template TID_1500" in said
    assert "Error" not in said, said


def test_pictures_are_of_the_slices_that_speak_most_for_the_label_and_say_what_they_are(made: Made) -> None:
    label = made.score.labels.index(made.score.subject.prediction.label)  # type: ignore[union-attr]
    ranked = sorted(made.score.scored, key=lambda one: one[1].prediction.probabilities[label])  # type: ignore[union-attr]
    expected = {(part.instance_uid, part.frame) for part, _ in ranked[-PICTURES:]}
    shown, series = set(), set()
    for picture in made.pictures:
        (reference,) = picture.SourceImageSequence
        shown.add((reference.ReferencedSOPInstanceUID, int(reference.get("ReferencedFrameNumber", 1)) - 1))
        source = made.sources[reference.ReferencedSOPInstanceUID]
        series.add((source.SeriesInstanceUID, picture.SeriesInstanceUID))
        assert list(picture.ImageType) == ["DERIVED", "SECONDARY"]
        assert picture.BurnedInAnnotation == "YES"
        assert "in layer2, channels by gradient_x_deviation" in picture.DerivationDescription
        assert picture.Rows / source.Rows > picture.Columns // source.Columns  # the legend is below, and covers nothing
    assert shown == expected
    assert len(series) == len({of for of, _ in series}) == len({picture for _, picture in series})


def test_the_same_question_has_the_same_uids(real: Made, client: Client) -> None:
    again = series_results(client, real.score, list(Kind))
    assert [_uids(one) for one in again.objects] == [_uids(one) for one in real.results.objects]
    report, *others = (str(one.SOPInstanceUID) for one in again.objects)
    (alone,) = series_results(client, real.score, [Kind.REPORT]).objects
    assert str(alone.SOPInstanceUID) not in {report, *others}  # it refers to no heat map


def test_a_source_without_a_frame_of_reference_has_a_report_but_no_map(client: Client, tmp_path: Path) -> None:
    SERIES["oblique"](tmp_path)
    for path in tmp_path.iterdir():
        source = dcmread(path)
        del source.FrameOfReferenceUID
        source.save_as(path)
    (score,) = score_study(client, "model", tmp_path, ANY).series
    made = series_results(client, score, [Kind.REPORT, Kind.HEAT_MAP])
    assert [type(one) for one in made.objects] == [Comprehensive3DSR]
    (reason,) = made.missing
    assert "no heat map: FrameOfReferenceUID is missing" in reason


def test_more_heat_maps_than_fit_in_memory_are_refused(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SERIES["oblique"](tmp_path)
    (score,) = score_study(client, "model", tmp_path, ANY).series
    size = sum(4 * 48 * 40 for _ in score.scored)
    monkeypatch.setattr(results, "MOST_BYTES", size)
    assert len(series_results(client, score, list(Kind)).objects) == 2 + PICTURES
    monkeypatch.setattr(results, "MOST_BYTES", size - 1)
    made = series_results(client, score, list(Kind))
    assert [type(one) for one in made.objects] == [Comprehensive3DSR]
    assert "no heat map: series is 0 MiB of heat maps; expected at most 0 MiB" in made.missing[0]


def test_an_instance_that_cannot_be_referred_to_is_named_and_its_neighbours_are_reported(
    client: Client, tmp_path: Path
) -> None:
    SERIES["oblique"](tmp_path)
    path, *others = sorted(tmp_path.iterdir())
    source = dcmread(path)
    source.SOPClassUID = "1.2.3"
    source.save_as(path)
    (score,) = score_study(client, "model", tmp_path, ANY).series
    report, mapped, *pictures = series_results(client, score, list(Kind)).objects
    assert mapped.NumberOfFrames == len(others)
    assert len(pictures) == PICTURES
    (reason,) = series_results(client, score, [Kind.REPORT]).missing
    assert f"no reference to instance {path.stem}: SOPClassUID is 1.2.3; expected MR Image Storage" in reason
    write_dicom(tmp_path / "report", report)
    assert path.stem.encode() not in (tmp_path / "report").read_bytes()


@pytest.mark.skipif(
    not (PROGRAM and PLUGIN.exists()) and not os.environ.get("CI"), reason="needs Debian's orthanc, orthanc-dicomweb"
)
def test_a_pacs_returns_every_result_as_it_was(made: Made, tmp_path: Path) -> None:
    with Orthanc(tmp_path / "orthanc") as orthanc:
        destinations: tuple[Destination, ...] = (
            Pacs("ORTHANC", "127.0.0.1", orthanc.dicom_port),
            Dicomweb(f"{orthanc.url}/dicom-web"),
        )
        # Each half by another way: what comes twice, Orthanc keeps as it came first.
        for destination, files in zip(destinations, (made.files[::2], made.files[1::2]), strict=True):
            destination.store(files)
        kept = {str(one["MainDicomTags"]["SOPInstanceUID"]): str(one["ID"]) for one in orthanc.instances()}  # type: ignore[index]
        for path, result in zip(made.files, made.all, strict=True):
            assert _content(orthanc.file(kept[result.SOPInstanceUID])) == _content(path.read_bytes())


def _content(file: bytes) -> bytes:
    """Return what a file holds behind its meta information (PS3.10 7.1), which every program writes of its own."""
    length = int.from_bytes(file[140:144], "little")
    return file[144 + length :]


def _uids(result: Dataset) -> list[tuple[str, str]]:
    return [(element.keyword, str(element.value)) for element in result.iterall() if element.VR == "UI"]


def test_a_name_of_several_values_keeps_no_report_back(client: Client, tmp_path: Path) -> None:
    for index in range(5):
        with config.disable_value_validation():
            place = {"ImagePositionPatient": [0, 0, index], "FrameOfReferenceUID": "1.2.3", "StudyInstanceUID": "1.2.4"}
            dataset = mr_instance(np.full((40, 40), index, np.uint16), SeriesInstanceUID="1.2.5", **place)
            dataset.PatientName = ["Doe^Jane", "Roe^Jane"]
            dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    (score,) = score_study(client, "model", tmp_path, ANY).series
    results = series_results(client, score, [Kind.REPORT])
    assert (len(results.objects), results.missing) == (1, [])
    write_dicom(tmp_path / "report", results.objects[0])
    assert list(dcmread(tmp_path / "report").PatientName) == ["Doe^Jane", "Roe^Jane"]
