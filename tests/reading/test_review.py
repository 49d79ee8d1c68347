"""ReviewService by the SDK: readings made, read, closed; what is told when, and to whom; nothing lost or doubled."""

import asyncio
import csv
import json
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sqlalchemy import create_engine, text

from limner import AsyncClient, Client
from limner.errors import InvalidInputError, NotFoundError, WrongStateError
from limner.gateway.structured_report import MARK
from limner.reading_export import write_export
from limner.types import Case, ItemKind, LexiconEntry, NewReading, ReaderVerdict
from limner_server.review.lexicon import DEFAULT_LEXICON
from tests.conftest import Run
from tests.imaging.conformance import assert_valid_dicom
from tests.live import LiveServer
from tests.reading import study


def verdict(judged: Case, /, **said: object) -> ReaderVerdict:
    fields = {"id": uuid.uuid4().hex, "case": judged.id, "likelihood": 70, "realism": 4, "confidence": 3, **said}
    return ReaderVerdict.model_validate(fields)


def read_all(client: Client, token: str) -> list[Case]:
    """Give a verdict on each case, in order; its likelihood is ten times its place."""
    cases = []
    while (case := client.readings.case(token)) is not None:
        client.readings.submit(token, verdict(case, likelihood=min(10 * case.position, 100)))
        cases.append(case)
    return cases


@pytest.fixture(scope="module")
def made(study_client: Client) -> NewReading:
    return study.create(study_client, ("ann", "bo"), class_means=True)


@pytest.fixture(scope="module")
def closed(study_client: Client) -> NewReading:
    """A reading of two readers, of whom the first changed their mind on the first case."""
    made = study.create(study_client, ("ann", "bo"))
    for token in made.tokens:
        cases = read_all(study_client, token.token)
    again = study_client.readings.case(made.tokens[0].token, 1)
    assert again is not None
    said = verdict(again, likelihood=99, features={"margin": "ill defined"}, comment="=2+2 Ödem", seconds=4.25)
    study_client.readings.submit(made.tokens[0].token, said)
    assert len(cases) == made.reading.total
    study_client.readings.close(made.reading.id)
    return made


def test_a_reading_says_what_is_asked_and_not_which_image_is_which(study_client: Client, made: NewReading) -> None:
    reading = made.reading
    assert {(item.kind, item.label): item.images for item in reading.items} == {
        (kind, label): images
        for kind, images in ((ItemKind.REAL, 3), (ItemKind.CLASS_MEAN, 1), (ItemKind.SIMULATED, 1))
        for label in study.LABELS
    }
    assert (reading.total, reading.label, reading.question) == (10, "yes", "How likely is yes?")
    assert tuple(tuple(entry.options) for entry in reading.lexicon) == tuple(entry.options for entry in DEFAULT_LEXICON)
    assert (reading.grid.size, reading.closed, reading.seed) == (study.SIZE, None, 1)
    assert study_client.readings.get(reading.id) == reading
    assert reading in study_client.readings.list()
    for ask in (study_client.readings.export, study_client.readings.agreement):
        with pytest.raises(WrongStateError, match="is told once it is closed"):
            ask(reading.id)


def test_readers_have_orders_and_ids_of_their_own(study_client: Client, made: NewReading) -> None:
    forms = [study_client.readings.open(token.token) for token in made.tokens]
    assert [form.reader for form in forms] == ["ann", "bo"]
    assert not set(forms[0].cases) & set(forms[1].cases)
    images = []
    for form, token in zip(forms, made.tokens, strict=True):
        cases = [study_client.readings.case(token.token, place) for place in range(1, 11)]
        assert [case and case.id for case in cases] == list(form.cases)
        images.append([case.pixels for case in cases if case])
    assert images[0] != images[1]
    assert sorted(images[0]) == sorted(images[1])


def test_every_image_is_of_one_form(study_client: Client, made: NewReading) -> None:
    token = made.tokens[0].token
    for place in range(1, 11):
        case = study_client.readings.case(token, place)
        assert case is not None
        pixels = np.frombuffer(case.pixels, "<u2")
        assert (len(pixels), case.size, case.spacing_mm) == (study.SIZE**2, study.SIZE, 128 / study.SIZE)
        assert (pixels.min(), pixels.max()) == (0, 65535)
        # Clipped alike, at the 1st and 99th percentile.
        assert 0.005 < (pixels == 0).mean() < 0.02
        assert 0.005 < (pixels == 65535).mean() < 0.02


def test_all_images_of_a_reading_lie_in_one_file(
    study_client: Client, study_server: LiveServer, made: NewReading
) -> None:
    folder = study_server.data_dir / "readings" / made.reading.id
    assert [path.name for path in folder.iterdir()] == ["images.npy"]
    assert folder.joinpath("images.npy").stat().st_size == 128 + made.reading.total * 2 * study.SIZE**2


def test_a_slice_of_each_subject_is_read_before_a_second_of_any(study_client: Client) -> None:
    made = study.create(study_client, real=study.SUBJECTS // 2 + 1)
    study_client.readings.close(made.reading.id)
    real = [item for item in study_client.readings.export(made.reading.id).items if item.kind is ItemKind.REAL]
    for label in study.LABELS:
        slices = Counter(item.subject for item in real if item.label == label)
        assert sorted(slices.values()) == [1, 1, 1, 2]
    assert len({item.instance for item in real}) == len(real)


def test_the_same_seed_makes_the_same_reading(study_client: Client, made: NewReading) -> None:
    again = study.create(study_client, ("ann", "bo"), class_means=True)
    for first, second in zip(made.tokens, again.tokens, strict=True):
        one, other = (study_client.readings.case(token.token, 4) for token in (first, second))
        assert one is not None
        assert other is not None
        assert one.pixels == other.pixels
        assert one.id != other.id


def test_a_token_is_kept_as_its_digest_and_ends_with_the_next(study_server: LiveServer, study_client: Client) -> None:
    made = study.create(study_client)
    token = made.tokens[0].token
    with create_engine(f"sqlite:///{study_server.data_dir / 'limner.sqlite'}").connect() as connection:
        rows = connection.execute(text("SELECT * FROM reading_readers")).all()
    assert rows
    assert token not in str(rows)
    renewed = study_client.readings.issue_token(made.reading.id, "ann")
    assert study_client.readings.open(renewed.token).reader == "ann"
    for wrong in (token, "", "x" * 43):
        with pytest.raises(NotFoundError, match="no reading 'with this token'"):
            study_client.readings.open(wrong)
    joined = study_client.readings.issue_token(made.reading.id, "cy")
    assert study_client.readings.open(joined.token).reader == "cy"
    assert [one.reader for one in study_client.readings.get(made.reading.id).readers] == ["ann", "cy"]
    assert token not in study_server.log()


def test_a_verdict_is_kept_once_however_often_it_is_sent(study_client: Client) -> None:
    made = study.create(study_client)
    token = made.tokens[0].token
    case = study_client.readings.case(token)
    assert case is not None
    said = verdict(case, features={"size": "> 4 cm"}, comment="unsure", seconds=12.5)
    receipts = [study_client.readings.submit(token, said) for _ in range(3)]
    assert [receipt.repeated for receipt in receipts] == [False, True, True]
    assert [receipt.done for receipt in receipts] == [1, 1, 1]
    progress = study_client.readings.get(made.reading.id).readers[0]
    assert (progress.done, progress.verdicts) == (1, 1)
    kept = study_client.readings.case(token, case.position)
    assert kept is not None
    assert kept.verdict == said.model_copy(update={"id": ""})
    with pytest.raises(InvalidInputError, match="a new id for another verdict"):
        study_client.readings.submit(token, said.model_copy(update={"likelihood": 1}))


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"id": "short"}, "verdict.id"),
        ({"case": "0" * 16}, "verdict.case"),
        ({"likelihood": 100.5}, "verdict.likelihood"),
        ({"likelihood": float("nan")}, "verdict.likelihood"),
        ({"realism": 0}, "verdict.realism"),
        ({"confidence": 6}, "verdict.confidence"),
        ({"seconds": -1}, "verdict.seconds"),
        ({"comment": "x" * 4001}, "verdict.comment"),
        ({"features": {"colour": "red"}}, "verdict.features"),
        ({"features": {"margin": "red"}}, "verdict.features[margin]"),
    ],
)
def test_a_wrong_verdict_is_refused_by_its_field(
    study_client: Client, made: NewReading, said: dict[str, object], field: str
) -> None:
    token = made.tokens[1].token
    case = study_client.readings.case(token, 1)
    assert case is not None
    with pytest.raises(InvalidInputError) as refused:
        study_client.readings.submit(token, verdict(case, **said))
    assert refused.value.field == field
    assert study_client.readings.open(token).done == ()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"readers": ()}, "readers"),
        ({"readers": ("ann", "ann")}, "readers"),
        ({"readers": ("model",)}, "readers"),
        ({"readers": ("a/b",)}, "readers"),
        ({"label": "maybe"}, "label"),
        ({"real": 201}, "real_per_label"),
        ({"real": 0, "simulations": []}, "real_per_label"),
        ({"question": "?" * 301}, "question"),
        ({"lexicon": [LexiconEntry(name="a", options=("x", "x"))]}, "lexicon.options"),
        ({"lexicon": [LexiconEntry(name="a", options=("x", "y"))] * 2}, "lexicon.name"),
    ],
)
def test_a_wrong_reading_is_refused_by_its_field(study_client: Client, asked: dict[str, object], field: str) -> None:
    before = len(study_client.readings.list())
    with pytest.raises(InvalidInputError) as refused:
        study.create(study_client, **{"readers": ("ann",), **asked})  # type: ignore[arg-type]
    assert refused.value.field == field
    assert len(study_client.readings.list()) == before


def test_what_was_not_simulated_cannot_be_read(study_client: Client) -> None:
    never = study.simulate(study_client).model_copy(update={"seed": 99})
    with pytest.raises(WrongStateError, match="seed 99 was not asked for yet: simulate first"):
        study.create(study_client, simulations=[never])
    with pytest.raises(WrongStateError, match="kept no images of resamples; simulate with checks"):
        study.create(study_client, resampled=1)
    with pytest.raises(NotFoundError, match="no reading 'f00d'"):
        study_client.readings.get("f00d")


def test_controls_of_a_checked_simulation_are_read_too(client: Client, model: str, cohort: str) -> None:
    """Images of randomised networks and of resamples; a slice the model was trained on is judged out of fold."""
    result = client.simulate(model, cohort, steps=10)
    made = client.readings.create(
        "Controls", model, cohort, ["ann"], simulations=[result], real=2, resampled=2, randomised=1, class_means=True
    )
    counts = {kind: sum(item.images for item in made.reading.items if item.kind is kind) for kind in ItemKind}
    assert counts == {"real": 4, "simulated": 2, "resampled": 4, "randomised": 2, "class_mean": 2}
    with pytest.raises(InvalidInputError, match="at most 5, as many as the simulation made"):
        client.readings.create("Controls", model, cohort, ["ann"], simulations=[result], randomised=11)
    client.readings.close(made.reading.id)
    content = client.readings.export(made.reading.id, images=True)
    assert {item.out_of_fold for item in content.items if item.kind is ItemKind.REAL} == {True}
    assert {item.out_of_fold for item in content.items if item.kind is not ItemKind.REAL} == {False}
    assert len({item.pixels for item in content.items}) == 14
    assert {len(item.pixels) for item in content.items} == {2 * 32 * 32}
    # Pixels are what the network sees but for their unit, so the model says the same of them.
    controls = [item for item in content.items if not item.out_of_fold]
    images = [np.frombuffer(item.pixels, "<u2").reshape(32, 32).astype(np.float32) for item in controls]
    for item, judged in zip(controls, client.predict(model, images).results, strict=True):
        assert judged.prediction is not None
        assert item.probabilities == pytest.approx(judged.prediction.probabilities, abs=1e-3)
    assert len({item.probabilities for item in controls}) == len(controls)
    with pytest.raises(WrongStateError, match="closed without a verdict"):
        client.readings.agreement(made.reading.id)


def test_a_closed_reading_takes_no_verdict_and_tells_all(study_client: Client, closed: NewReading) -> None:
    token = closed.tokens[0].token
    assert study_client.readings.open(token).closed
    case = study_client.readings.case(token, 2)
    assert case is not None
    with pytest.raises(WrongStateError, match="was closed at"):
        study_client.readings.submit(token, verdict(case))
    with pytest.raises(WrongStateError, match="was closed at"):
        study_client.readings.issue_token(closed.reading.id, "dee")
    first = study_client.readings.get(closed.reading.id).closed
    assert study_client.readings.close(closed.reading.id).closed == first
    content = study_client.readings.export(closed.reading.id)
    assert [one.sequence for one in content.verdicts] == sorted(one.sequence for one in content.verdicts)
    ann = [one for one in content.verdicts if one.reader == "ann"]
    assert len(ann) == closed.reading.total + 1
    assert [one.counts for one in ann] == [False, *[True] * closed.reading.total]
    assert (ann[-1].position, ann[-1].step, ann[-1].verdict.likelihood) == (1, 5, 99)
    for item in content.items:
        assert sum(item.probabilities) == pytest.approx(1)
        assert bool(item.subject) == (item.kind is ItemKind.REAL)


def test_agreement_is_that_of_the_verdicts_that_count(study_client: Client, closed: NewReading) -> None:
    found = study_client.readings.agreement(closed.reading.id, resamples=200, seed=3)
    again = study_client.readings.agreement(closed.reading.id, resamples=200, seed=3)
    assert found.to_dict() == again.to_dict()
    named = {(figure.name, figure.first, figure.second): figure for figure in found.figures}
    assert named["auc_real_simulated", "ann", ""].value == 0.5
    assert named["kappa_quadratic", "ann", "bo"].cases == closed.reading.total
    means = {(group.reader, group.kind, group.label): group for group in found.groups}
    assert means["ann", ItemKind.SIMULATED, "yes"].realism == 4
    with pytest.raises(InvalidInputError, match="100 to 10,000"):
        study_client.readings.agreement(closed.reading.id, resamples=99)


def test_agreement_of_all_readers_with_the_model_is_called_so(
    limner: Run, study_server: LiveServer, closed: NewReading
) -> None:
    code, out, _ = limner(
        "reading", "agreement", closed.reading.id, "--resamples", 100, "--server", study_server.address
    )
    assert code == 0
    of = {line.split("│")[2].strip() for line in out.splitlines() if "kappa_quadratic" in line}
    assert of == {"ann and model", "bo and model", "ann and bo", "all readers and model", "all readers"}


def test_export_writes_tables_pictures_and_dicom(study_client: Client, closed: NewReading, tmp_path: Path) -> None:
    content = study_client.readings.export(closed.reading.id, images=True)
    paths = write_export(content, tmp_path / "out", images=True, dicom=True)
    assert all(path.is_file() for path in paths)
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * closed.reading.total + 1
    (changed,) = [row for row in rows if row["comment"]]
    assert (changed["comment"], changed["feature: margin"], changed["counts"]) == ("'=2+2 Ödem", "ill defined", "1")
    assert {row["kind"] for row in rows} == {"real", "simulated"}
    report = pydicom.dcmread(tmp_path / "out" / "report-ann.dcm")
    assert report.Modality == "SR"
    assert MARK in [item.get("TextValue") for item in report.ContentSequence]
    assert "Ödem" in str(report)
    referred = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert_valid_dicom(tmp_path / "out" / "report-ann.dcm")
    assert_valid_dicom(tmp_path / "out" / "images" / "000.dcm")
    image = pydicom.dcmread(tmp_path / "out" / "images" / "000.dcm")
    assert image.SOPInstanceUID in {one.ReferencedSOPInstanceUID for one in referred}
    assert image.pixel_array.astype("<u2").tobytes() == content.items[0].pixels


def test_a_reading_by_the_command(limner: Run, study_server: LiveServer, study_client: Client, tmp_path: Path) -> None:
    result = study.simulate(study_client)
    (tmp_path / "result.json").write_text(json.dumps(result.to_dict()))
    (tmp_path / "lexicon.json").write_text('[{"name": "edge", "options": ["soft", "hard"]}]')
    server = ["--server", study_server.address]
    asked = ["--reader", "ann", "--real", 2, "--class-means", "--simulation", tmp_path / "result.json"]
    code, out, _ = limner(
        *("reading", "create", study.MODEL, study.COHORT, *asked, "--lexicon", tmp_path / "lexicon.json"),
        *("--json", *server),
    )
    made = json.loads(out)
    reading, token = made["reading"]["id"], made["tokens"][0]["token"]
    assert (code, made["reading"]["total"], made["reading"]["lexicon"][0]["name"]) == (0, 8, "edge")
    code, _, err = limner("reading", "export", reading, "--out", tmp_path / "out", *server)
    assert (code, "is open" in err) == (1, True)
    read_all(study_client, token)
    assert "ann 8/8" in limner("reading", "list", *server)[1]
    assert limner("reading", "close", reading, *server)[2].strip() == f"closed reading {reading}"
    code, out, _ = limner("reading", "agreement", reading, "--resamples", 100, *server)
    assert (code, "kappa_quadratic" in out, "ann and model" in out) == (0, True, True)
    assert limner("reading", "export", reading, "--out", tmp_path / "out", "--images", *server)[0] == 0
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 8
    (tmp_path / "lexicon.json").write_text('[{"name": "edge", "options": ["soft"]}]')
    code, _, err = limner(
        "reading", "create", study.MODEL, study.COHORT, "--reader", "a", "--lexicon", tmp_path / "lexicon.json", *server
    )
    assert (code, "wrong at 0.options" in err) == (2, True)


def test_the_asynchronous_client_reads_too(study_server: LiveServer, study_client: Client) -> None:
    made = study.create(study_client)

    async def read() -> int:
        async with AsyncClient(study_server.address) as client:
            form = await client.readings.open(made.tokens[0].token)
            case = await client.readings.case(made.tokens[0].token)
            assert case is not None
            assert case.id == form.cases[0]
            await client.readings.submit(made.tokens[0].token, verdict(case))
            await client.readings.close(made.reading.id)
            return len((await client.readings.export(made.reading.id)).verdicts)

    assert asyncio.run(read()) == 1
