"""Use and memory of the GPUs of this machine, by NVIDIA's management library; nothing where there is none."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pynvml
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from limner_server.telemetry.triton_names import gpu_families

LABEL = "gpu_uuid"

_log = logging.getLogger(__name__)


class GpuCollector(Collector):
    """Reads every GPU that the driver shows. A figure that a card or its MIG slices do not have is left out."""

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._handles: list[tuple[str, Any]] = []
            _log.info("no metrics of GPUs: %s", error)
            return
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        self._handles = [(str(pynvml.nvmlDeviceGetUUID(handle)), handle) for handle in handles]

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges of each GPU, Triton's names for them too; nothing without one."""
        if not self._handles:
            return
        families = (
            self._gauge("limner_gpu_utilization_ratio", "Share of time that the GPU was busy.", _utilization),
            self._gauge("limner_gpu_power_watts", "Power that the GPU draws.", _watts),
            self._gauge("limner_gpu_memory_used_bytes", "Memory of the GPU in use, by whatever process.", _used),
            self._gauge("limner_gpu_memory_total_bytes", "Memory of the GPU.", _total),
        )
        yield from families
        yield from gpu_families(*families)

    def _gauge(self, name: str, documentation: str, read: Callable[[Any], float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, documentation, labels=(LABEL,))
        for uuid, handle in self._handles:
            with _where_supported(uuid, name):
                family.add_metric([uuid], read(handle))
        return family


@contextlib.contextmanager
def _where_supported(uuid: str, name: str) -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        _log.debug("no %s of %s: %s", name, uuid, error)


def _utilization(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100


def _watts(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000


def _used(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _total(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
