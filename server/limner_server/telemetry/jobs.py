"""How the trainings and simulations are doing, as metrics."""

import logging
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from limner_server.jobs.runner import JobRunner
from limner_server.state.jobs import JobKind, JobState, JobStore

_TRAINING = {
    "epoch": ("limner_training_epoch", "Epoch that the running training is in, counted from 1."),
    "epochs": ("limner_training_epochs", "Epochs of the network that the running training is at."),
    "loss": ("limner_training_loss", "Loss of the epoch so far."),
    "images_per_second": ("limner_training_images_per_second", "Images that the running training learns from in 1 s."),
}

_log = logging.getLogger(__name__)


class JobCollector(Collector):
    """Reads the numbers of jobs from the database, and the progress of those that this process runs.

    A job's id is a label only while it runs here: there are never more than `max_jobs` of them.
    """

    def __init__(self, store: JobStore, runner: JobRunner) -> None:
        self._store = store
        self._runner = runner

    def collect(self) -> Iterable[Metric]:
        """Yield every family; `limner_jobs` is empty while the database cannot be reached."""
        jobs = GaugeMetricFamily("limner_jobs", "Jobs in the database.", labels=("kind", "state"))
        unreachable = GaugeMetricFamily("limner_database_unreachable", "1 while the database does not answer, else 0.")
        try:
            counted = self._store.count()
        except SQLAlchemyError:
            _log.warning("the jobs could not be counted for the metrics", exc_info=True)
            unreachable.add_metric([], 1)
        else:
            unreachable.add_metric([], 0)
            for kind in JobKind:
                for state in JobState:
                    jobs.add_metric([kind, state], counted.get((kind, state), 0))
        yield jobs
        yield unreachable
        yield from self._progress()

    def _progress(self) -> Iterable[Metric]:
        ratio = GaugeMetricFamily(
            "limner_job_progress_ratio", "Share of a running job that is done.", labels=("kind", "job_id")
        )
        figures = {
            key: GaugeMetricFamily(name, documentation, labels=("job_id",))
            for key, (name, documentation) in _TRAINING.items()
        }
        for job_id, (kind, progress) in self._runner.running().items():
            ratio.add_metric([kind, job_id], progress.get("fraction", 0.0))
            for key, family in figures.items():
                if key in progress:
                    family.add_metric([job_id], progress[key])
        return ratio, *figures.values()
