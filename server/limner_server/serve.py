"""One serving process, from settings to exit status."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError

from limner_server.door import Door
from limner_server.errors import LimnerError
from limner_server.settings import Settings
from limner_server.telemetry import logs, page, workers
from limner_server.telemetry.machine import register_machine

if TYPE_CHECKING:
    from limner_server.app import App

Announce = Callable[[int, int | None], None]
"""Called with the port of the service, and with that of the metrics where they have one, once everything is served."""


def serve(settings: Settings, announce: Announce, metrics: socket.socket | None = None) -> None:
    """Serve until told to stop. The metrics are told over a socket where one is given, and else have a port.

    Ends the process with 2 where a setting is wrong, and with 1 where port or database are gone since `checks` looked.
    """
    logs.configure(settings.log_level)
    try:
        asyncio.run(_serve(settings, announce, metrics))
    except LimnerError as error:
        print(f"limner-server: {error}", file=sys.stderr)
        sys.exit(2)
    except OperationalError as error:
        sys.exit(f"limner-server: the database cannot be reached: {' '.join(str(error.orig).split())}")
    except OSError as error:
        sys.exit(f"limner-server: {error}")


async def _serve(settings: Settings, announce: Announce, metrics: socket.socket | None) -> None:
    signals = _Signals()
    door = Door(settings)
    port = await door.listen()
    try:
        registry = CollectorRegistry()
        metrics_port = _tell_metrics(settings, registry, metrics)
        # In a thread, since importing torch takes seconds, in which the door answers for what is to come.
        app = await asyncio.to_thread(_assemble, settings, door, registry)
        await app.start()
    except BaseException:
        await door.shut()
        raise
    signals.serving = True
    announce(port, metrics_port)
    await app.run_until(signals.told_to_stop)


def _tell_metrics(settings: Settings, registry: CollectorRegistry, supervisor: socket.socket | None) -> int | None:
    """Tell metrics to the supervisor where there is one; else serve them where that is wanted, and return the port."""
    if supervisor is not None:
        threading.Thread(target=workers.tell, args=(supervisor, registry), name="metrics", daemon=True).start()
        return None
    if settings.metrics_port is None:
        return None
    register_machine(registry)
    return page.serve(settings.metrics_host, settings.metrics_port, registry)


def _assemble(settings: Settings, door: Door, registry: CollectorRegistry) -> "App":
    # It tells of each of its plugins when it is imported.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    from limner_server.app import App

    return App(settings, door, registry)


class _Signals:
    """SIGTERM and SIGINT: the first one says that it is time to go, another ends the process at once.

    So does the first while there is nothing to drain yet.
    """

    def __init__(self) -> None:
        self.told_to_stop = asyncio.Event()
        self.serving = False
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if not self.serving:
            os._exit(0)
        if self.told_to_stop.is_set():
            os._exit(128 + number)
        self.told_to_stop.set()
