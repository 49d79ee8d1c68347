"""Metrics that are the same for all processes of a service, which only one of them tells. Imports no torch."""

import importlib.metadata
import platform

from prometheus_client import CollectorRegistry, Info

from limner_server.telemetry.gpu import GpuCollector


def register_machine(registry: CollectorRegistry) -> None:
    """Add the GPUs and the versions of what serves."""
    registry.register(GpuCollector())
    build = Info("limner_build", "Versions of what serves; always 1.", registry=registry)
    packages = {name: importlib.metadata.version(name) for name in ("limner", "torch", "grpcio")}
    build.info({"version": packages.pop("limner"), "python": platform.python_version(), **packages})
