"""One serving process, from settings to exit status."""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from limner_server.settings import Settings
from limner_server.telemetry import logs, page, workers
from limner_server.telemetry.machine import register_machine

Announce = Callable[[int, int | None], None]
"""Called with the port of the service, and with that of the metrics where they have one, once everything is served."""


def serve(settings: Settings, announce: Announce, metrics: socket.socket | None = None) -> None:
    """Serve until told to stop. The metrics are told over a socket where one is given, and else have a port.

    Ends the process with 2 where a setting is wrong, and with 1 where the port or the database cannot be had.
    """
    try:
        asyncio.run(_serve(settings, announce, metrics))
    except OSError as error:
        sys.exit(f"limner-server: {error}")


async def _serve(settings: Settings, announce: Announce, metrics: socket.socket | None) -> None:
    logs.configure(settings.log_level)
    registry = CollectorRegistry()
    metrics_port = None
    if metrics is not None:
        threading.Thread(target=workers.tell, args=(metrics, registry), name="metrics", daemon=True).start()
    elif settings.metrics_port is not None:
        register_machine(registry)
        metrics_port = page.serve(settings.metrics_host, settings.metrics_port, registry)

    # torch takes seconds to import; --help and wrong settings need not wait for it.
    from sqlalchemy.exc import OperationalError

    from limner_server.app import App
    from limner_server.errors import LimnerError

    try:
        app = App(settings, registry)
    except LimnerError as error:
        print(f"limner-server: {error}", file=sys.stderr)
        sys.exit(2)
    except OperationalError as error:
        sys.exit(f"limner-server: the database cannot be reached: {' '.join(str(error.orig).split())}")
    announce(await app.start(), metrics_port)
    await app.run_until_stopped()
