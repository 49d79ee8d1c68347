"""Runs against the live server: their tables say what `predict` says, in every format, and what failed and why."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from limner import AsyncClient, Client, Image
from limner.errors import InvalidInputError, NotFoundError, WrongStateError
from limner.imaging import decode
from limner.scoring.merge import merge
from limner.types import FeatureOptions, ImageResult, ImportanceMethod, ScoreOptions, Scores, TableFormat
from tests.live import LiveServer
from tests.scoring.tables import TABLES, assert_same_tables, read

EVERY = ScoreOptions(every_slice=True)
RESUME = ScoreOptions(every_slice=True, resume=True)


def test_a_folder_is_scored_as_predict_scores_it(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    scores = client.score(untrained, phantom, tmp_path / "run")
    rows = read(tmp_path / "run" / "images.csv")
    images = [Image(row["path"], id=row["id"], subject=row["subject"]) for row in rows]
    expected = client.predict(untrained, images)
    assert (scores.images, scores.failed, scores.subjects, scores.left_out) == (72, 0, 6, 1)
    assert scores.model == expected.model
    for row, result in zip(rows, expected.results, strict=True):
        prediction = result.prediction
        assert prediction is not None
        assert prediction.distance is not None
        assert (row["id"], row["subject"], row["label"]) == (result.id, result.subject, prediction.label)
        assert (row["model"], row["version"], row["digest"]) == (untrained, "1", expected.model.digest)
        assert row["far"] == str(int(prediction.distance.far))
        found = [float(row[name]) for name in ("p_no", "p_yes", "logit_no", "logit_yes", "distance")]
        wanted = [*prediction.probabilities, *prediction.logits, prediction.distance.value]
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    for row, subject in zip(read(tmp_path / "run" / "subjects.csv"), expected.subjects, strict=True):
        assert subject.prediction is not None
        counts = (subject.subject, str(subject.images), str(subject.failed), str(subject.far), subject.prediction.label)
        assert (row["subject"], row["images"], row["failed"], row["far"], row["label"]) == counts
        assert float(row["p_yes"]) == pytest.approx(subject.prediction.probabilities[1], abs=1e-4)
        assert float(row["logit_no"]) == pytest.approx(subject.prediction.logits[0], abs=1e-4)


def test_every_format_says_the_same(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    for kind in TableFormat:
        options = EVERY.model_copy(update={"format": kind, "resume": True})
        client.score(untrained, mixed, tmp_path / "run", options)
    for name in TABLES:
        lines, cells, arrow = (read(tmp_path / "run" / f"{name}.{kind}") for kind in ("jsonl", "csv", "parquet"))
        assert [list(row) for row in lines] == [list(row) for row in cells] == [list(row) for row in arrow]
        for line, cell, row in zip(lines, cells, arrow, strict=True):
            for column, value in line.items():
                assert row[column] == (pytest.approx(value) if isinstance(value, float) else value)
                text = "" if value is None else str(int(value)) if isinstance(value, bool) else value
                assert cell[column] == (text if isinstance(text, str) else pytest.approx(cell[column]))
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert float(cell[column]) == pytest.approx(value)


def test_what_failed_is_named_and_stops_no_other(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    computed = pydicom.dcmread(mixed / "PH-001" / "0001.dcm")
    computed.Modality = "CT"
    computed.save_as(mixed / "PH-001" / "0001.dcm")
    scores = client.score(untrained, mixed, tmp_path / "run", EVERY)
    images = read(tmp_path / "run" / "images.csv")
    failures = {Path(row["path"]).name: row for row in read(tmp_path / "run" / "failures.csv")}
    assert (scores.images, scores.failed) == (len(images), 2) == (len(list(mixed.rglob("*.dcm"))), len(failures))
    assert {Path(row["path"]).name for row in images if row["error"]} == {"0001.dcm", "0099.dcm"}
    failed = failures["0001.dcm"]
    assert (failed["code"], failed["field"], failed["value"], failed["expected"]) == (
        *("INVALID_ARGUMENT", "Modality", "CT", "MR"),
    )
    assert failed["error"] == "Modality is CT; expected MR"
    assert failures["0099.dcm"]["field"] == "PixelData"
    subjects = {row["subject"]: row for row in read(tmp_path / "run" / "subjects.csv")}
    assert (subjects["PH-001"]["images"], subjects["PH-001"]["failed"]) == ("11", "1")


def test_a_subject_of_failures_only_has_no_prediction(client: Client, untrained: str, tmp_path: Path) -> None:
    client.score(untrained, [Image(np.zeros((2, 3)), subject="s")], tmp_path / "run")
    (row,) = read(tmp_path / "run" / "subjects.csv")
    assert (row["subject"], row["images"], row["failed"], row["label"], row["p_yes"]) == ("s", "0", "1", "", "")


def test_failures_are_scored_again_if_asked(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    whole = (phantom / "PH-000" / "0001.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole)
    (tmp_path / "b.dcm").write_bytes(whole.replace(b"CS\x02\x00MR", b"CS\x02\x00CT"))
    source = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    assert client.score(untrained, source, tmp_path / "run").failed == 1
    (tmp_path / "b.dcm").write_bytes(whole)
    assert (
        client.score(untrained, source, tmp_path / "run", RESUME.model_copy(update={"every_slice": False})).failed == 1
    )
    again = ScoreOptions(resume=True, retry_failed=True)
    assert client.score(untrained, source, tmp_path / "run", again).failed == 0
    first, second = read(tmp_path / "run" / "images.csv")
    assert (second["p_yes"], second["error"]) == (first["p_yes"], "")
    assert read(tmp_path / "run" / "failures.csv") == []


def test_a_manifest_hands_labels_through(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    names = sorted((phantom / "PH-000").glob("*.dcm"))[:3]
    lines = [f"{path},{n % 2},subject {n % 2},image {n}" for n, path in enumerate(names)]
    manifest.write_text("\n".join(["path,label,subject,id", *lines]))
    client.score(untrained, manifest, tmp_path / "run")
    rows = read(tmp_path / "run" / "images.csv")
    assert [(row["id"], row["subject"], row["known_label"], row["path"], row["frame"]) for row in rows] == [
        (f"image {n}", f"subject {n % 2}", str(n % 2), str(path), "") for n, path in enumerate(names)
    ]


def test_a_volume_is_scored_as_its_dicom(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    files = sorted((phantom / "PH-000").glob("*.dcm"))
    slices = [decode(path) for path in files]
    # Columns to the left, rows to the back: RAS voxel axes that run against DICOM's are turned when they are read.
    voxels = np.stack([one.pixels.T[::-1, ::-1] for one in slices], axis=2)
    affine = np.diag([slices[0].column_spacing_mm, slices[0].row_spacing_mm, 3, 1])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "v.nii.gz")
    client.score(untrained, tmp_path / "v.nii.gz", tmp_path / "nifti")
    client.score(untrained, phantom / "PH-000", tmp_path / "dicom", EVERY)
    ours, theirs = read(tmp_path / "nifti" / "images.csv"), read(tmp_path / "dicom" / "images.csv")
    assert [float(row["logit_yes"]) for row in ours] == pytest.approx(
        [float(row["logit_yes"]) for row in theirs], abs=1e-3
    )


def test_processes_read_what_a_thread_reads(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    client.score(untrained, mixed, tmp_path / "thread", EVERY)
    client.score(untrained, mixed, tmp_path / "processes", EVERY.model_copy(update={"readers": 2}))
    assert_same_tables(tmp_path / "processes", tmp_path / "thread")


def test_embeddings_come_with_predictions_where_asked_for(client: Client, server: LiveServer, untrained: str) -> None:
    async def streamed() -> list[ImageResult]:
        async with AsyncClient(server.address) as asynchronous:
            return [result async for result in asynchronous.predict_stream(untrained, images, embedding=True)]

    images = [*noise(3), np.zeros((2, 3), np.float32)]
    alone = client.predict(untrained, images, embedding=True).results
    for results in (alone, list(client.predict_stream(untrained, images, embedding=True)), asyncio.run(streamed())):
        for result, expected in zip(results[:3], alone, strict=False):
            assert result.embedding == pytest.approx(expected.embedding, abs=1e-4)
        assert results[3].embedding is None
    assert alone[0].embedding is not None
    assert alone[0].embedding.shape == (512,)
    assert client.predict(untrained, images).results[0].embedding is None


def test_embeddings_are_those_of_features(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    options = EVERY.model_copy(update={"embeddings": True})
    client.score(untrained, mixed, tmp_path / "run", options)
    rows = read(tmp_path / "run" / "images.csv")
    found = load_file(tmp_path / "run" / "embeddings.safetensors")["embedding"]
    assert (found.dtype, found.shape) == (np.float32, (len(rows), 512))
    scored = [index for index, row in enumerate(rows) if not row["error"]]
    assert np.isnan(found).all(axis=1).nonzero()[0].tolist() == [n for n in range(len(rows)) if n not in scored]
    images = [rows[index]["path"] for index in scored]
    for index, result in zip(
        scored, client.extract_features_stream(untrained, images, FeatureOptions(embedding=True)), strict=True
    ):
        assert result.embedding == pytest.approx(found[index], abs=1e-4)
    with safe_open(tmp_path / "run" / "embeddings.safetensors", "np") as file:
        assert file.metadata()["model"] == rows[0]["digest"]
    with pytest.raises(InvalidInputError, match="embeddings is False; expected True, with which the run"):
        client.score(untrained, mixed, tmp_path / "run", RESUME)


def noise(count: int) -> Iterator[Any]:
    for seed in range(count):
        values = np.random.default_rng(seed).gamma(2.0, 100.0, (32, 32)).astype(np.float32)
        yield Image(values, id=f"image {seed}", subject=f"subject {seed % 3}")


def test_images_of_the_callers_own_are_resumed_where_they_are_the_same(
    client: Client, untrained: str, tmp_path: Path
) -> None:
    def broken() -> Iterator[Any]:
        yield from noise(60)
        raise RuntimeError("gone")

    client.score(untrained, noise(100), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="gone"):
        client.score(untrained, broken(), tmp_path / "run")
    with pytest.raises(InvalidInputError, match=r"image 0 is '0' and was 'image 0'; expected the images of the run"):
        client.score(untrained, (np.zeros((32, 32)) for _ in range(100)), tmp_path / "run", RESUME)
    client.score(untrained, noise(100), tmp_path / "run", RESUME)
    assert_same_tables(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(InvalidInputError, match="the source has 99 images that are not all the same"):
        client.score(untrained, noise(99), tmp_path / "run", RESUME)
    with pytest.raises(InvalidInputError, match="the source has 101 images that are not all the same"):
        client.score(untrained, noise(101), tmp_path / "run", RESUME)


def test_a_run_is_not_begun_over_another(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    client.score(untrained, phantom / "PH-000", tmp_path / "run")
    with pytest.raises(InvalidInputError, match=r"run holds a run with 12 images scored; expected .*--resume"):
        client.score(untrained, phantom / "PH-000", tmp_path / "run")
    with pytest.raises(
        InvalidInputError, match=r"holds something else than a run, run; expected a new or an empty folder"
    ):
        client.score(untrained, phantom / "PH-000", tmp_path)
    with pytest.raises(NotFoundError, match="no model 'none'"):
        client.score("none", phantom, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every_slice": False}, "selection is series by the default rules .*; expected every slice, with which"),
        ({"shard": 1, "shards": 2}, "shard is 1/2; expected 0/1, with which the run in .* was begun"),
    ],
)
def test_a_run_is_gone_on_with_as_it_was_begun(
    client: Client, untrained: str, phantom: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    client.score(untrained, phantom / "PH-000", tmp_path / "run", EVERY)
    with pytest.raises(InvalidInputError, match=message):
        client.score(untrained, phantom / "PH-000", tmp_path / "run", RESUME.model_copy(update=change))
    with pytest.raises(InvalidInputError, match=r"source is .*PH-001; expected .*PH-000, with which"):
        client.score(untrained, phantom / "PH-001", tmp_path / "run", RESUME)


def test_a_changed_source_is_refused(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    client.score(untrained, mixed, tmp_path / "run", EVERY)
    (mixed / "added.txt").write_text("")
    with pytest.raises(
        InvalidInputError, match=r"the files of .* are others than when .*; expected the same names and"
    ):
        client.score(untrained, mixed, tmp_path / "run", RESUME)
    (mixed / "added.txt").unlink()
    client.score(untrained, mixed, tmp_path / "run", RESUME)


def test_a_changed_model_is_refused_unless_allowed(
    client: Client, untrained: str, phantom: Path, tmp_path: Path
) -> None:
    digest = client.score(untrained, phantom / "PH-000", tmp_path / "run", EVERY).model.digest
    run = tmp_path / "run" / "run.json"
    run.write_text(run.read_text().replace(digest, "e" * 64).replace('"version": "1"', '"version": "7"'))
    with pytest.raises(
        WrongStateError, match=r"begun with untrained:7, digest eeeeeeeeeeee; the server has untrained:1"
    ):
        client.score(untrained, phantom / "PH-000", tmp_path / "run", RESUME)
    allowed = RESUME.model_copy(update={"another_model": True})
    assert client.score(untrained, phantom / "PH-000", tmp_path / "run", allowed).model.digest == digest
    assert client.score(untrained, phantom / "PH-000", tmp_path / "run", RESUME).images == 12
    run.write_text(run.read_text().replace(digest, "e" * 64).replace('"yes"', '"perhaps"'))
    with pytest.raises(WrongStateError, match=r"whose labels, embeddings or features are others: begin another"):
        client.score(untrained, phantom / "PH-000", tmp_path / "run", allowed)


def test_a_changed_model_has_as_many_channels_in_each_layer_of_features(
    client: Client, untrained: str, phantom: Path, tmp_path: Path
) -> None:
    features = EVERY.model_copy(update={"features": ("layer1",)})
    digest = client.score(untrained, phantom / "PH-000", tmp_path / "run", features).model.digest
    run = tmp_path / "run" / "run.json"
    begun = run.read_text().replace(digest, "e" * 64)
    allowed = features.model_copy(update={"resume": True, "another_model": True})
    run.write_text(begun.replace('"layer1": 64', '"layer1": 32'))
    with pytest.raises(WrongStateError, match=r"whose labels, embeddings or features are others: begin another"):
        client.score(untrained, phantom / "PH-000", tmp_path / "run", allowed)
    run.write_text(begun.replace('"layer2": 128', '"layer2": 32'))  # of which nothing is kept
    assert client.score(untrained, phantom / "PH-000", tmp_path / "run", allowed).model.digest == digest


def test_progress_is_told(client: Client, untrained: str, phantom: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    client.score(untrained, phantom, tmp_path / "run", progress=lambda *now: told.append(now))
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["reading headers", "scoring", "writing tables"]
    assert ("reading headers", 73, None) in told
    scoring = [(done, total) for what, done, total in told if what == "scoring"]
    assert scoring[0] == (0, 72)
    assert scoring[-1] == (72, 72)
    assert [done for done, _ in scoring] == sorted(done for done, _ in scoring)


def test_features_are_those_that_are_extracted(client: Client, untrained: str, mixed: Path, tmp_path: Path) -> None:
    options = EVERY.model_copy(update={"features": ("layer1", "layer4"), "embeddings": True})
    scores = client.score(untrained, mixed, tmp_path / "run", options)
    rows = read(tmp_path / "run" / "images.csv")
    files = {name: load_file(tmp_path / "run" / f"features-{name}.safetensors")[name] for name in options.features}
    assert {name: found.shape for name, found in files.items()} == {
        "layer1": (scores.images, 64),
        "layer4": (scores.images, 512),
    }
    scored = [index for index, row in enumerate(rows) if not row["error"]]
    images = [Image(rows[index]["path"]) for index in scored]
    wanted = FeatureOptions(layers=options.features, top_k=512, embedding=True)
    embeddings = load_file(tmp_path / "run" / "embeddings.safetensors")["embedding"]
    for index, result in zip(scored, client.extract_features_stream(untrained, images, wanted), strict=True):
        assert result.embedding == pytest.approx(embeddings[index], abs=1e-4)
        assert float(rows[index]["p_yes"]) == pytest.approx(result.prediction.probabilities[1], abs=1e-4)
        for layer in result.layers:
            expected = {channel.index: channel.importance for channel in layer.top}
            assert len(expected) == layer.channels
            found = dict(enumerate(files[layer.layer][index]))
            assert found == pytest.approx(expected, rel=1e-2, abs=1e-4)
    (failed,) = (index for index, row in enumerate(rows) if row["error"])
    assert np.isnan(files["layer4"][failed]).all()
    with safe_open(tmp_path / "run" / "features-layer4.safetensors", "np") as file:
        assert file.metadata() == {
            "model": scores.model.digest,
            "source": file.metadata()["source"],
            "method": "gradient_x_deviation",
        }
    other = RESUME.model_copy(update={"embeddings": True, "features": ("layer4",), "method": "activation"})
    with pytest.raises(InvalidInputError, match=r"features is layer4, activation; expected layer1, layer4, gradient"):
        client.score(untrained, mixed, tmp_path / "run", other)


def test_the_features_of_shards_are_merged(client: Client, untrained: str, tmp_path: Path) -> None:
    options = ScoreOptions(features=("stem",), method=ImportanceMethod.ACTIVATION)
    client.score(untrained, noise(7), tmp_path / "whole", options)
    parts = [tmp_path / f"part-{shard}" for shard in range(2)]
    for shard, part in enumerate(parts):
        client.score(untrained, noise(7), part, options.model_copy(update={"shard": shard, "shards": 2}))
    merge(parts, tmp_path / "merged")
    ours, theirs = (load_file(tmp_path / name / "features-stem.safetensors")["stem"] for name in ("merged", "whole"))
    assert ours.shape == (7, 64)
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ScoreOptions(features=("layer9",)), "features has 'layer9'; expected of stem, layer1"),
        (ScoreOptions(features=("stem",), priority=3), "priority is 3; expected none with features"),
        (ScoreOptions(method=ImportanceMethod.CAM), "method is cam; expected features beside it"),
    ],
)
def test_features_that_cannot_be_are_refused(
    client: Client, untrained: str, tmp_path: Path, options: ScoreOptions, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        client.score(untrained, noise(1), tmp_path / "run", options)


def test_the_asynchronous_client_scores_the_same(
    client: Client, server: LiveServer, untrained: str, phantom: Path, tmp_path: Path
) -> None:
    async def run() -> Scores:
        async with AsyncClient(server.address) as asynchronous:
            return await asynchronous.score(untrained, phantom, tmp_path / "async", progress=tell)

    def tell(what: str, done: int, total: int | None) -> None:
        told.append((what, done, total))
        assert asyncio.get_running_loop()

    told: list[tuple[str, int, int | None]] = []
    ours = asyncio.run(run())
    theirs = client.score(untrained, phantom, tmp_path / "sync")
    assert ours == theirs.model_copy(update={"folder": tmp_path / "async"})
    assert_same_tables(tmp_path / "async", tmp_path / "sync")
    assert ("scoring", 72, 72) in told


def test_an_asynchronous_run_that_is_cancelled_is_gone_on_with(
    server: LiveServer, untrained: str, tmp_path: Path
) -> None:
    async def cancelled() -> None:
        async with AsyncClient(server.address) as asynchronous:
            begun = asyncio.Event()
            tell = lambda what, done, _all: begun.set() if what == "scoring" and done else None  # noqa: E731
            run = asyncio.ensure_future(asynchronous.score(untrained, noise(5000), tmp_path / "run", progress=tell))
            await begun.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

    async def resumed() -> Scores:
        async with AsyncClient(server.address) as asynchronous:
            return await asynchronous.score(untrained, noise(5000), tmp_path / "run", ScoreOptions(resume=True))

    asyncio.run(cancelled())
    kept = (tmp_path / "run" / "rows.jsonl").read_bytes().count(b"\n")
    assert 0 < kept < 5000
    scores = asyncio.run(resumed())
    assert (scores.images, scores.failed) == (5000, 0)
    assert (tmp_path / "run" / "rows.jsonl").read_bytes().count(b"\n") == 5000
