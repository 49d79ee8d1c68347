"""One serving process, from settings to exit status."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

from limner_server.door import Door
from limner_server.errors import LimnerError
from limner_server.settings import Settings
from limner_server.telemetry import logs

if TYPE_CHECKING:
    from limner_server.app import App


def serve(settings: Settings, announce: Callable[[int], None]) -> None:
    """Serve until told to stop; `announce` is called with the port once everything is served.

    Ends the process with 2 where a setting is wrong, and with 1 where port or database are gone since `checks` looked.
    """
    logs.configure(settings.log_level)
    try:
        asyncio.run(_serve(settings, announce))
    except LimnerError as error:
        print(f"limner-server: {error}", file=sys.stderr)
        sys.exit(2)
    except OperationalError as error:
        sys.exit(f"limner-server: the database cannot be reached: {' '.join(str(error.orig).split())}")
    except OSError as error:
        sys.exit(f"limner-server: {error}")


async def _serve(settings: Settings, announce: Callable[[int], None]) -> None:
    signals = _Signals()
    door = Door(settings)
    port = await door.listen()
    try:
        # In a thread, since importing torch takes seconds, in which the door answers for what is to come.
        app = await asyncio.to_thread(_assemble, settings, door)
        await app.start()
    except BaseException:
        await door.shut()
        raise
    signals.serving = True
    announce(port)
    await app.run_until(signals.told_to_stop)


def _assemble(settings: Settings, door: Door) -> "App":
    # It tells of each of its plugins when it is imported.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    from limner_server.app import App

    return App(settings, door)


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
