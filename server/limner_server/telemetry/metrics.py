"""Metrics of one serving process."""

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from limner_server.jobs.runner import JobRunner
from limner_server.serving import ModelPool
from limner_server.state.jobs import JobStore
from limner_server.telemetry.jobs import JobCollector
from limner_server.telemetry.models import ModelCollector

disable_created_metrics()  # type: ignore[no-untyped-call]


def register_serving(registry: CollectorRegistry, models: ModelPool, store: JobStore, runner: JobRunner) -> None:
    """Add what a process tells of itself, but for its calls, which their interceptor adds."""
    registry.register(ModelCollector(lambda: models.loaded))
    registry.register(JobCollector(store, runner))
    ProcessCollector(registry=registry)
