"""What the loaded versions have done, as metrics.

Their labels are names of loaded versions, never what a caller has asked for: there are as many as were published.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from limner_server.serving import ServedModel
from limner_server.statistics import BOUNDS_S
from limner_server.telemetry.histogram import buckets
from limner_server.telemetry.triton_names import model_families

LABELS = ("model", "version")
BATCH_BOUNDS = tuple(2**power for power in range(13))
"""Upper bounds of the classes that sizes of batches are counted in; no batch is larger than the last."""

_STAGES = {"decode": "compute_input", "queue": "queue", "compute": "compute_infer", "encode": "compute_output"}
"""Stages of a request on its way, and where `Statistics` has them."""


class ModelCollector(Collector):
    """Reads the statistics, the executor and the queue of each loaded version.

    Parameters
    ----------
    loaded
        Returns the loaded versions; called from the thread that asks for the page.
    """

    def __init__(self, loaded: Callable[[], Sequence[ServedModel]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        """Yield every family, those without a loaded version empty."""
        served = self._loaded()
        yield _images(served)
        yield _stages(served)
        yield _batches(served)
        yield _rejections(served)
        yield _out_of_memory(served)
        yield from _gauges(served)
        yield from model_families(served)


def labels_of(model: ServedModel) -> list[str]:
    """Return the values of `LABELS`."""
    return [model.version.name, str(model.version.number)]


def _images(served: Sequence[ServedModel]) -> Metric:
    family = CounterMetricFamily(
        "limner_images", "Images answered by forward passes, for predictions and explanations.", labels=LABELS
    )
    for model in served:
        family.add_metric(labels_of(model), model.executor.counts.images)
    return family


def _stages(served: Sequence[ServedModel]) -> Metric:
    family = HistogramMetricFamily(
        "limner_stage_seconds",
        "Time that an answered request (an image of limner.v1, a call of ModelInfer) spent in each stage: decode (with"
        " the wait for a decoding thread), queue, compute, encode.",
        labels=(*LABELS, "stage"),
    )
    for model in served:
        for stage, attribute in _STAGES.items():
            spread = getattr(model.statistics, attribute)
            family.add_metric([*labels_of(model), stage], buckets(BOUNDS_S, spread.classes), spread.ns / 1e9)
    return family


def _batches(served: Sequence[ServedModel]) -> Metric:
    family = HistogramMetricFamily("limner_batch_images", "Images in each forward pass.", labels=LABELS)
    for model in served:
        sizes = model.executor.batch_sizes
        classes = [0] * (len(BATCH_BOUNDS) + 1)
        for size, batches in sizes.items():
            classes[(size - 1).bit_length()] += batches
        images = sum(size * batches for size, batches in sizes.items())
        family.add_metric(labels_of(model), buckets(BATCH_BOUNDS, classes), images)
    return family


def _rejections(served: Sequence[ServedModel]) -> Metric:
    family = CounterMetricFamily(
        "limner_rejections",
        "Requests (an image of limner.v1, a call of ModelInfer) that were not answered, by reason.",
        labels=(*LABELS, "reason"),
    )
    for model in served:
        for reason, duration in model.statistics.failures.items():
            family.add_metric([*labels_of(model), reason], duration.count)
    return family


def _out_of_memory(served: Sequence[ServedModel]) -> Metric:
    family = CounterMetricFamily(
        "limner_out_of_memory", "Forward passes that found no memory, after which the batch was halved.", labels=LABELS
    )
    for model in served:
        family.add_metric(labels_of(model), model.executor.counts.out_of_memory)
    return family


def _gauges(served: Sequence[ServedModel]) -> Iterable[Metric]:
    waiting = GaugeMetricFamily("limner_queue_images", "Images that wait for a batch.", labels=LABELS)
    limit = GaugeMetricFamily("limner_queue_limit_images", "Images that may wait; one more is refused.", labels=LABELS)
    healthy = GaugeMetricFamily(
        "limner_model_unhealthy", "Serving processes in which this loaded version cannot answer.", labels=LABELS
    )
    for model in served:
        waiting.add_metric(labels_of(model), model.executor.waiting)
        limit.add_metric(labels_of(model), model.executor.max_waiting)
        healthy.add_metric(labels_of(model), not model.executor.healthy)
    return waiting, limit, healthy
