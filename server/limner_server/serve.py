"""One serving process, from settings to exit status."""

import asyncio
import sys
from collections.abc import Callable

from limner_server.settings import Settings


def serve(settings: Settings, announce: Callable[[int], None]) -> None:
    """Serve until told to stop; `announce` is called with the port once everything is served.

    Ends the process with 2 where a setting is wrong, and with 1 where the port or the database cannot be had.
    """
    try:
        asyncio.run(_serve(settings, announce))
    except OSError as error:
        sys.exit(f"limner-server: {error}")


async def _serve(settings: Settings, announce: Callable[[int], None]) -> None:
    # torch takes seconds to import; --help and wrong settings need not wait for it.
    from sqlalchemy.exc import OperationalError

    from limner_server.app import App
    from limner_server.errors import LimnerError
    from limner_server.telemetry import logs

    logs.configure(settings.log_level)
    try:
        app = App(settings)
    except LimnerError as error:
        print(f"limner-server: {error}", file=sys.stderr)
        sys.exit(2)
    except OperationalError as error:
        sys.exit(f"limner-server: the database cannot be reached: {' '.join(str(error.orig).split())}")
    announce(await app.start())
    await app.run_until_stopped()
