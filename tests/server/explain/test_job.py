"""The job on a real cohort, database and model repository; its result as the service reads it."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from limner.imaging.grid import Grid
from limner.imaging.slices import Slice
from limner_server.errors import InvalidInputError, LimnerError, NotFoundError, WrongStateError
from limner_server.explain.checks import Verdict
from limner_server.explain.job import SLICES, run
from limner_server.explain.result import load_result
from limner_server.jobs.process import Reporter
from limner_server.networks.artifact import export
from limner_server.networks.card import SiblingModel
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortStore, NewSlice
from tests.server.explain.tiny import CLASSES, SIZE, stripes_cohort, untrained_artifact
from tests.server.networks.cards import make_card


@dataclass(frozen=True)
class World:
    """What a job finds when it starts."""

    root: Path
    store: CohortStore
    request: dict[str, object]

    def run(self, name: str, **changes: object) -> tuple[Path, list[dict[str, dict[str, object]]]]:
        """Run a job in a folder of its own; return the folder and what was reported."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "request.json").write_text(json.dumps({**self.request, **changes}))
        said = io.BytesIO()
        run(folder, Reporter(said))
        return folder, [json.loads(line) for line in said.getvalue().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    grid = Grid(fov_mm=SIZE, size=SIZE)
    url = f"sqlite:///{tmp_path / 'limner.sqlite'}"
    store = CohortStore(url, tmp_path)
    store.create("stripes", CLASSES)
    cohort = stripes_cohort(subjects=4, slices=1)
    store.add(
        "stripes",
        [
            NewSlice(instance, subject, "", CLASSES[label], False, Slice(image, 1.0, 1.0))
            for instance, subject, label, image in zip(
                cohort.instances.tolist(), cohort.subjects.tolist(), cohort.labels.tolist(), cohort.images, strict=True
            )
        ],
    )
    staging = tmp_path / "staging"
    staging.mkdir()
    digest = export(untrained_artifact(), staging / "model.pt")
    (staging / "sibling.pt").write_bytes((staging / "model.pt").read_bytes())
    sibling = SiblingModel(file="sibling.pt", digest=digest, seed=1)
    card = make_card(name="m", labels=CLASSES, grid=grid, digest=digest, sibling=sibling)
    (staging / "card.json").write_text(card.model_dump_json())
    ModelRepository(tmp_path / "models").publish("m", staging)
    request: dict[str, object] = {
        "model": "m",
        "version": 1,
        "cohort": "stripes",
        "cohort_digest": store.snapshot("stripes").digest,
        "steps": 10,
        "checks": False,
        "database_url": url,
        "data_dir": str(tmp_path),
        "model_repository": str(tmp_path / "models"),
        "device": "cpu",
        "threads": 1,
    }
    return World(tmp_path, store, request)


def test_a_job_leaves_a_result_that_can_be_read(world: World) -> None:
    folder, said = world.run("job")
    source, outcome = load_result(folder)
    assert (source.model, source.version, source.cohort) == ("m", 1, "stripes")
    assert source.cohort_digest == world.request["cohort_digest"]
    assert source.recipe.steps == 10
    assert source.grid.size == SIZE
    assert outcome.images.shape == (2, SIZE, SIZE)
    assert outcome.images.dtype == np.float32
    assert outcome.verdict is Verdict.UNCHECKED
    assert said[-1]["result"]["verdict"] == "UNCHECKED"
    assert not (folder / SLICES).exists()
    assert any(event.get("progress", {}).get("fraction") == 1.0 for event in said)


def test_a_network_that_learned_nothing_fails_and_its_checks_travel_whole(world: World) -> None:
    folder, _ = world.run("job", checks=True)
    _, outcome = load_result(folder)
    assert [check.number for check in outcome.checks] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not outcome.checks[0].passed
    assert not outcome.checks[1].ran
    assert outcome.checks[2].threshold == 0.3
    assert outcome.checks[7].value == pytest.approx(1)  # the sibling is the network itself
    assert len(outcome.faithfulness) == 10
    assert outcome.verdict is Verdict.FAILED_CHECK


def test_a_finished_job_is_not_done_again(world: World) -> None:
    folder, _ = world.run("job")
    before = (folder / "result.npz").stat().st_mtime_ns
    _, said = world.run("job")
    assert (folder / "result.npz").stat().st_mtime_ns == before
    assert len(said) == 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"cohort_digest": "0" * 64}, WrongStateError, "has changed"),
        ({"cohort": "other"}, NotFoundError, "other"),
        ({"version": 2}, NotFoundError, "version"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    world: World, changes: dict[str, object], error: type[LimnerError], words: str
) -> None:
    with pytest.raises(error, match=words):
        world.run("job", **changes)
    with pytest.raises(WrongStateError, match="no result"):
        load_result(world.root / "job")


def test_an_empty_cohort_and_one_with_other_labels_are_refused(world: World) -> None:
    world.store.create("empty", CLASSES)
    with pytest.raises(InvalidInputError, match="empty"):
        world.run("job", cohort="empty", cohort_digest=world.store.snapshot("empty").digest)
    world.store.create("planes", ("sagittal", "transverse"))
    image = Slice(np.eye(8, dtype=np.float32), 1.0, 1.0)
    world.store.add("planes", [NewSlice("i", "s", "", "sagittal", False, image)])
    with pytest.raises(InvalidInputError, match="the model's labels"):
        world.run("job", cohort="planes", cohort_digest=world.store.snapshot("planes").digest)


def test_a_damaged_artifact_is_refused(world: World) -> None:
    artifact = world.root / "models" / "m" / "1" / "model.pt"
    artifact.write_bytes(artifact.read_bytes() + b"\0")
    with pytest.raises(WrongStateError, match="sha256"):
        world.run("job")
