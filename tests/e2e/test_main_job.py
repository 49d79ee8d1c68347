"""The paper's steps over the wire, as a researcher and an integrator would walk them, on a phantom cohort."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from limner import AsyncClient, Client, Image
from limner.errors import InvalidInputError, NotFoundError, WrongStateError
from limner.imaging import decode
from limner.types import (
    FeatureOptions,
    ImportanceMethod,
    JobState,
    ModelState,
    SimulationMethod,
    SimulationResult,
    Verdict,
)
from tests.conftest import SMALL
from tests.e2e.phantoms import import_phantom
from tests.live import LiveServer

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def slices(phantom: Path) -> list[Image]:
    """Two subjects' slices, named."""
    paths = sorted(phantom.glob("PH-00[01]/*.dcm"))
    return [Image(path, id=f"{path.parent.name}/{path.stem}", subject=path.parent.name) for path in paths]


def test_a_second_import_adds_nothing(client: Client, cohort: str, phantom: Path, key: bytes) -> None:
    before = client.cohort(cohort)
    result = import_phantom(client, phantom, cohort, key)
    assert (result.added, result.unchanged, result.rejected) == (0, 72, ())
    assert client.cohort(cohort) == before
    assert before.labels == ("non-recurrent", "recurrent")
    assert [subject.slices for subject in before.subjects] == [12] * 6


def test_nothing_that_identifies_reaches_the_server(server: LiveServer, cohort: str, model: str) -> None:
    """Names and ids of the phantom, wherever the server keeps anything."""
    identifying = re.compile(rb"PHANTOM|PH-00\d")
    kept = [path for path in server.folder.rglob("*") if path.is_file()]
    assert len(kept) > 72
    assert [path for path in kept if identifying.search(path.read_bytes())] == []


def test_training_leaves_a_model_with_its_card(client: Client, server: LiveServer, cohort: str, model: str) -> None:
    found = client.model(model)
    assert found.identity.version == "1"
    assert found.card["cohort"]["digest"] == client.cohort(cohort).digest
    assert found.card["digest"] == found.identity.digest
    assert {metric.name for metric in found.metrics} >= {"auc", "accuracy", "sensitivity", "specificity", "brier"}
    assert all(metric.low <= metric.value <= metric.high for metric in found.metrics)
    subjects = {item["subject"] for item in found.card["out_of_fold"]}
    assert subjects == {subject.subject for subject in client.cohort(cohort).subjects}
    halves = [set(half["subjects"]) for half in found.card["halves"]]
    assert halves[0].isdisjoint(halves[1])
    assert halves[0] | halves[1] == subjects
    assert "dynamic_batching" in (server.model_repository / model / "config.pbtxt").read_text()


def test_two_trainings_with_one_seed_give_the_same_figures(client: Client, cohort: str, model: str) -> None:
    again = client.train(cohort, "again", SMALL)
    assert again.state is JobState.SUCCEEDED, again.error
    first, second = client.model(model).card, client.model("again").card
    for field in ("metrics", "calibration", "threshold", "out_of_fold"):
        assert first[field] == second[field]


def test_every_way_in_gives_the_same_prediction(client: Client, model: str, slices: list[Image]) -> None:
    grid = client.model(model).grid
    assert grid is not None
    paths = client.predict(model, slices)
    decoded = [decode(Path(str(image.content))) for image in slices]
    for other in (
        client.predict(model, slices, send_dicom=True),
        client.predict(model, slices, send_dicom="identified"),
        client.predict(model, decoded),
        client.predict(model, [grid.resample(image) for image in decoded]),
    ):
        for one, two in zip(paths.results, other.results, strict=True):
            assert one.prediction is not None
            assert two.prediction is not None
            np.testing.assert_allclose(one.prediction.logits, two.prediction.logits, atol=1e-4)


def test_a_slice_alone_equals_the_slice_in_a_batch(client: Client, model: str, slices: list[Image]) -> None:
    together = client.predict(model, slices[:16]).results
    assert max(result.timing.batch_size for result in together if result.timing) > 1
    for image, result in zip(slices[:16], together, strict=True):
        (alone,) = client.predict(model, image).results
        assert alone.timing is not None
        assert alone.timing.batch_size == 1
        assert alone.prediction is not None
        assert result.prediction is not None
        np.testing.assert_allclose(alone.prediction.probabilities, result.prediction.probabilities, atol=1e-4)


def test_a_subject_is_its_slices_mean_logit(client: Client, model: str, slices: list[Image]) -> None:
    result = client.predict(model, slices)
    assert [subject.subject for subject in result.subjects] == ["PH-000", "PH-001"]
    for subject in result.subjects:
        logits = [
            item.prediction.logits for item in result.results if item.prediction and item.subject == subject.subject
        ]
        assert (subject.images, subject.failed) == (12, 0)
        assert subject.prediction is not None
        np.testing.assert_allclose(subject.prediction.logits, np.mean(logits, axis=0), atol=1e-5)
        assert sum(subject.prediction.probabilities) == pytest.approx(1, abs=1e-5)


def test_every_prediction_says_how_far_its_slice_is_from_home(client: Client, model: str, slices: list[Image]) -> None:
    """Slices that the model learned from, and noise; so small a model need not find that far."""
    reference = client.model(model).card["reference"]
    noise = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    images = [*slices[:12], *(Image(pixels, id=f"noise {n}", subject="NOISE") for n, pixels in enumerate(noise))]
    found = client.predict(model, images)
    distances = [result.prediction.distance for result in found.results if result.prediction]
    explained = client.extract_features(model, images[11:13]).results
    for result, distance in zip(explained, distances[11:13], strict=True):
        assert result.prediction is not None
        assert result.prediction.distance is not None
        assert distance is not None
        assert result.prediction.distance.value == pytest.approx(distance.value, rel=1e-3)
    for distance in distances:
        assert distance is not None
        assert distance.far == (distance.value > reference["percentiles"][99]) == (distance.percentile > 99)
    far = [distance.far for distance in distances if distance]
    assert [subject.far for subject in found.subjects] == [sum(far[:12]), sum(far[12:])]
    assert all(subject.prediction and subject.prediction.distance is None for subject in found.subjects)


def test_a_stream_answers_in_order_and_rolls_up(client: Client, model: str, slices: list[Image]) -> None:
    images = [*slices, Image(b"not DICOM", id="bad", subject="PH-000")]
    stream = client.predict_stream(model, images)
    results = list(stream)
    assert [result.id for result in results] == [image.id for image in images]
    assert [result.id for result in results if result.error] == ["bad"]
    assert [(subject.subject, subject.images, subject.failed) for subject in stream.subjects] == [
        ("PH-000", 12, 1),
        ("PH-001", 12, 0),
    ]
    unary = client.predict(model, images)
    for one, two in zip(results, unary.results, strict=True):
        if one.prediction is not None and two.prediction is not None:
            np.testing.assert_allclose(one.prediction.logits, two.prediction.logits, atol=1e-4)


def test_a_caller_that_leaves_in_mid_stream_hurts_nobody(client: Client, model: str, slices: list[Image]) -> None:
    stream = client.predict_stream(model, (image for _ in range(1000) for image in slices))
    assert next(iter(stream)).prediction is not None
    stream.close()
    assert client.predict(model, slices[:1]).results[0].prediction is not None


def test_the_asynchronous_client_agrees(server: LiveServer, client: Client, model: str, slices: list[Image]) -> None:
    async def tell() -> list[tuple[float, ...]]:
        async with AsyncClient(server.address) as other:
            await other.wait_ready()
            stream = other.predict_stream(model, slices)
            return [result.prediction.logits async for result in stream if result.prediction]

    expected = [result.prediction.logits for result in client.predict(model, slices).results if result.prediction]
    np.testing.assert_allclose(asyncio.run(tell()), expected, atol=1e-4)


@pytest.mark.parametrize("method", ImportanceMethod)
def test_features_by_every_method(client: Client, model: str, slices: list[Image], method: ImportanceMethod) -> None:
    layers = ("layer4",) if method in (ImportanceMethod.CAM, ImportanceMethod.MEAN_ABLATION) else LAYERS
    options = FeatureOptions(layers=layers, method=method, top_k=5, maps=True, heat_maps=True, embedding=True)
    reply = client.extract_features(model, slices[:2], options)
    assert reply.method is method
    for result, image in zip(reply.results, slices, strict=False):
        assert result.error is None
        assert [layer.layer for layer in result.layers] == list(layers)
        assert result.embedding is not None
        assert result.embedding.shape == (512,)
        source = decode(Path(str(image.content)))
        for layer in result.layers:
            importances = [channel.importance for channel in layer.top]
            assert importances == sorted(importances, reverse=True)
            assert len(layer.top) == 5
            assert layer.top[0].map is not None
            assert layer.top[0].map.shape == (layer.height, layer.width)
            assert layer.grid_heat_map is not None
            assert layer.grid_heat_map.shape == (32, 32)
            assert layer.source_heat_map is not None
            assert layer.source_heat_map.shape == source.pixels.shape
            assert 0 <= layer.source_heat_map.min() <= layer.source_heat_map.max() <= 1


def test_features_of_a_stream_agree_and_one_bad_image_fails_alone(
    client: Client, model: str, slices: list[Image]
) -> None:
    options = FeatureOptions(target="recurrent")
    images = [slices[0], Image(b"not DICOM", id="bad"), slices[1]]
    results = list(client.extract_features_stream(model, images, options))
    assert [result.error is None for result in results] == [True, False, True]
    assert results[0].target == "recurrent"
    unary = client.extract_features(model, images, options).results
    assert [channel.index for channel in results[2].layers[0].top] == [
        channel.index for channel in unary[2].layers[0].top
    ]


@pytest.fixture(scope="module")
def simulation(client: Client, cohort: str, model: str) -> SimulationResult:
    phases: list[float] = []
    result = client.simulate(model, cohort, steps=10, progress=lambda progress: phases.append(progress.fraction))
    assert phases
    assert phases == sorted(phases)
    return result


def test_a_simulation_shows_each_class_with_its_lineage_and_every_check(
    client: Client, cohort: str, model: str, simulation: SimulationResult
) -> None:
    assert [image.label for image in simulation.images] == ["non-recurrent", "recurrent"]
    assert simulation.model == client.model(model).identity
    assert simulation.cohort_digest == client.cohort(cohort).digest
    assert [check.number for check in simulation.checks] == [1, 2, 3, 4, 5, 6, 7, 8]
    # No network of another seed was trained.
    assert [check.name for check in simulation.checks if not check.ran] == ["another_seed"]
    assert all(check.source for check in simulation.checks)
    assert len(simulation.checks[3].null) == 101
    assert {(curve.layer, curve.method) for curve in simulation.faithfulness} == {
        (layer, method)
        for layer in LAYERS
        for method in (ImportanceMethod.GRADIENT_X_DEVIATION, ImportanceMethod.RANDOM)
    }
    assert [check.number for check in simulation.checks if check.gate] == [1, 2, 3, 4, 5]
    failed = any(check.gate and not check.passed for check in simulation.checks)
    assert simulation.verdict is (Verdict.FAILED_CHECK if failed else Verdict.EXPLANATION)
    subjects = {subject.subject for subject in client.cohort(cohort).subjects}
    assert {subject.subject for subject in simulation.subjects} == subjects
    assert [layer.layer for layer in simulation.layers] == list(LAYERS)
    for image in simulation.images:
        assert image.image.shape == image.nearest.shape == (32, 32)
        assert image.nearest_subject in subjects


def test_the_verdict_of_the_model_is_what_predict_says(
    client: Client, model: str, simulation: SimulationResult
) -> None:
    predicted = client.predict(model, [image.image for image in simulation.images])
    for image, result in zip(simulation.images, predicted.results, strict=True):
        assert result.prediction is not None
        assert result.prediction.label == image.prediction.label
        np.testing.assert_allclose(result.prediction.probabilities, image.prediction.probabilities, atol=1e-4)


def test_asking_again_gives_the_same_result_at_once(
    client: Client, cohort: str, model: str, simulation: SimulationResult
) -> None:
    again = client.simulate(model, cohort, steps=10)
    assert again.to_dict() == simulation.to_dict()


def test_a_simulation_without_checks_is_no_explanation(client: Client, cohort: str, model: str) -> None:
    result = client.simulate(model, cohort, method=SimulationMethod.COMPOSITE, checks=False)
    assert result.verdict is Verdict.UNCHECKED
    assert result.checks == ()


def test_a_simulation_of_what_does_not_fit(client: Client, cohort: str, model: str, phantom: Path, key: bytes) -> None:
    with pytest.raises(NotFoundError, match="cohort 'nobody'"):
        client.simulate(model, "nobody")
    with pytest.raises(InvalidInputError, match="steps is '9'"):
        client.simulate(model, cohort, steps=9)


def test_the_life_of_a_model(client: Client, cohort: str, model: str, slices: list[Image]) -> None:
    for _ in range(2):
        training = client.train(cohort, "lively", SMALL)
        assert training.state is JobState.SUCCEEDED, training.error
    assert client.predict("lively", slices[:1]).model.version == "2"
    promoted = client.promote_model("lively:1")
    assert promoted.aliases == ("production",)
    assert client.predict("lively", slices[:1]).model.version == "1"
    assert client.predict("lively:2", slices[:1]).model.version == "2"
    assert client.predict("lively:production", slices[:1]).model.version == "1"
    with pytest.raises(WrongStateError, match="production"):
        client.delete_model("lively:1")
    assert client.load_model("lively:2").state is ModelState.LOADED
    assert client.unload_model("lively:2").state is ModelState.AVAILABLE
    with pytest.raises(WrongStateError, match="not loaded"):
        client.unload_model("lively:2")
    client.delete_model("lively:2")
    with pytest.raises(NotFoundError, match="version of model 'lively' '2'; there is: 1, production"):
        client.predict("lively:2", slices[:1])


def test_a_damaged_artifact_is_listed_and_refused(
    client: Client, server: LiveServer, cohort: str, slices: list[Image]
) -> None:
    training = client.train(cohort, "damaged", SMALL)
    assert training.state is JobState.SUCCEEDED, training.error
    artifact = server.model_repository / "damaged" / "1" / "model.pt"
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    with pytest.raises(WrongStateError, match="sha256"):
        client.predict("damaged", slices[:1])
    (artifact.parent / "card.json").write_text("{")
    broken = client.model("damaged")
    assert broken.state is ModelState.BROKEN
    assert "card.json" in broken.error
    assert "damaged" in {found.identity.name for found in client.models()}


def test_a_cohort_in_use_is_not_deleted(client: Client, phantom: Path, key: bytes) -> None:
    import_phantom(client, phantom, "busy", key)
    training = client.start_training("busy", "unwanted", SMALL)
    with pytest.raises(WrongStateError, match=f"in use by training {training.id}"):
        client.delete_cohort("busy")
    client.cancel_training(training.id)
    client.delete_cohort("busy")
    with pytest.raises(NotFoundError):
        client.cohort("busy")
