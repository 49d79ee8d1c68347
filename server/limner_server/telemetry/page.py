"""The page of metrics: its text, and the small HTTP server that has it at `/metrics`."""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import CONTENT_TYPE_LATEST, ThreadingWSGIServer, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from limner_server.telemetry.triton_names import PREFIX

PATH = "/metrics"
_PATIENCE_S = 10.0


def render(source: Collector) -> bytes:
    """Return the families of a source as a page in the text format of Prometheus, those of Triton in Triton's style."""
    families = list(source.collect())
    ours = Families(family for family in families if not family.name.startswith(PREFIX))
    theirs = "".join(_triton_style(family) for family in families if family.name.startswith(PREFIX))
    return generate_latest(ours) + theirs.encode()


class Families(Collector):
    """Families that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


def serve(host: str, port: int, source: Collector) -> int:
    """Serve the page on a thread of its own for as long as the process lives, and return the port.

    Raises
    ------
    OSError
        The address cannot be had.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [f"there is only {PATH}\n".encode()]
        page = render(source)
        # This format alone: OpenMetrics, which Prometheus prefers, has no place for Triton's names.
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [page]

    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]

        class Server(ThreadingWSGIServer):
            address_family = family

        server = make_server(str(address[0]), port, answer, Server, _Handler)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: the port is taken or the address not here") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server.server_port


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S  # of a client that connects and says nothing

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base class has it
        """Say nothing: a scrape every few seconds is no news."""


def _triton_style(family: Metric) -> str:
    """Counters without `_total`, values without exponent: perf_analyzer reads `1.5e+10` as 1."""
    lines = [f"# HELP {family.name} {family.documentation}", f"# TYPE {family.name} {family.type}"]
    for sample in family.samples:
        # Names of models, UUIDs and words of our own: nothing in them would have to be escaped.
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
        lines.append(f"{family.name}{{{labels}}} {f'{sample.value:.6f}'.rstrip('0').rstrip('.')}")
    return "\n".join(lines) + "\n"
