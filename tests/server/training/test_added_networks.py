"""Repeats, learning curve and sibling in a job that is broken off in the middle of them."""

import io
from pathlib import Path

import pytest

from limner.imaging.grid import Grid
from limner_server.jobs.process import Reporter
from limner_server.networks.repository import ModelRepository
from limner_server.training.config import TrainingConfig
from limner_server.training.job import run
from limner_server.training.request import TrainingRequest
from tests.server.training.cohorts import stored

CONFIG = TrainingConfig(
    grid=Grid(128.0, 32), folds=2, epochs=1, batch_size=8, halves=False, repeats=2, learning_curve=True, sibling=True
)


class Breaking(Reporter):
    """Remembers how far the job said it was, and breaks it off in one phase."""

    def __init__(self, phase: str = "") -> None:
        super().__init__(io.BytesIO())
        self.fractions: list[float] = []
        self._phase = phase

    def progress(self, phase: str, fraction: float, remaining_s: float, **figures: float) -> None:
        self.fractions.append(fraction)
        if phase == self._phase:
            raise KeyboardInterrupt


def test_a_job_broken_off_among_the_added_networks_goes_on_to_the_same_card(tmp_path: Path) -> None:
    url = stored(tmp_path / "data")
    cards = []
    for name, phases in (("whole", [""]), ("broken", ["learning curve 2 of 2, 50% of the subjects", ""])):
        folder = tmp_path / name
        folder.mkdir()
        request = TrainingRequest(
            id="t-1",
            cohort="tiny",
            model="m",
            config=CONFIG,
            database_url=url,
            data_dir=tmp_path / "data",
            model_repository=folder / "models",
            device="cpu",
            threads=1,
        )
        (folder / "request.json").write_text(request.model_dump_json())
        for phase in phases:
            reporter = Breaking(phase)
            if phase:
                with pytest.raises(KeyboardInterrupt):
                    run(folder, reporter)
                assert len(list((folder / "networks").iterdir())) == 8
            else:
                run(folder, reporter)
                assert reporter.fractions == sorted(reporter.fractions)
                assert reporter.fractions[-1] == 1
        cards.append(ModelRepository(folder / "models").card("m", 1))
    whole, broken = cards
    own = {"created", "digest", "sibling"}
    assert broken.model_dump(exclude=own) == whole.model_dump(exclude=own)
    assert whole.evaluation is not None
    assert [point.subjects for point in whole.evaluation.learning_curve] == [2, 2, 3, 3]
