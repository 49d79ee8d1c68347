"""What is counted already, said again under the names of Triton's metrics, which dashboards and perf_analyzer know.

Here these names are written as prometheus_client has it, counters with `_total`; `page` prints them as Triton does.
(https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md)
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from limner_server.statistics import Reason, Spread

if TYPE_CHECKING:
    from limner_server.serving import ServedModel  # which imports torch

PREFIX = "nv_"

_LABELS = ("model", "version")
_FAILURES = {
    "REJECTED": (Reason.QUEUE_FULL, Reason.DEADLINE),
    "CANCELED": (Reason.CANCELLED,),
    "BACKEND": (Reason.ENGINE,),
    "OTHER": (Reason.INVALID, Reason.UNAVAILABLE, Reason.INTERNAL),
}
_DURATIONS = ("queue", "compute_input", "compute_infer", "compute_output")


def model_families(served: "Sequence[ServedModel]") -> Iterable[Metric]:
    """Yield what Triton tells of the inferences of each model."""
    success = _counter("nv_inference_request_success", "Requests that were answered.")
    failure = _counter("nv_inference_request_failure", "Requests that were not answered.", "reason")
    count = _counter("nv_inference_count", "Images of the requests that were answered.")
    executions = _counter("nv_inference_exec_count", "Forward passes.")
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Images that wait for a batch.", labels=_LABELS)
    request = _counter("nv_inference_request_duration_us", "Time of the requests that were answered.")
    durations = {
        name: _counter(f"nv_inference_{name}_duration_us", f"Their part of it in {name.replace('_', ' ')}.")
        for name in _DURATIONS
    }
    for model in served:
        labels, statistics = [model.version.name, str(model.version.number)], model.statistics
        success.add_metric(labels, statistics.success.count)
        for name, reasons in _FAILURES.items():
            failure.add_metric([*labels, name], sum(statistics.failures[reason].count for reason in reasons))
        count.add_metric(labels, statistics.inferences)
        executions.add_metric(labels, model.executor.counts.batches)
        pending.add_metric(labels, model.executor.waiting)
        request.add_metric(labels, statistics.success.ns // 1000)
        for name, family in durations.items():
            spread: Spread = getattr(statistics, name)
            family.add_metric(labels, spread.ns // 1000)
    return success, failure, count, executions, pending, request, *durations.values()


def gpu_families(utilization: Metric, power: Metric, used: Metric, total: Metric) -> Iterable[Metric]:
    """Yield Limner's own gauges of the GPUs under Triton's names."""
    for name, family in (
        ("nv_gpu_utilization", utilization),
        ("nv_gpu_power_usage", power),
        ("nv_gpu_memory_used_bytes", used),
        ("nv_gpu_memory_total_bytes", total),
    ):
        again = GaugeMetricFamily(name, family.documentation, labels=("gpu_uuid",))
        for sample in family.samples:
            again.add_metric([sample.labels["gpu_uuid"]], sample.value)
        yield again


def _counter(name: str, documentation: str, *more: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, documentation, labels=(*_LABELS, *more))
