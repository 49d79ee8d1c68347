"""The `limner-server` command."""

import asyncio
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from limner_server.settings import Settings


def main(arguments: list[str] | None = None) -> None:
    """Read the settings from flags and environment, and serve until told to stop.

    Ends with 2 and every problem listed where a setting is wrong, and with 1 where the port cannot be had.
    """
    try:
        settings = CliApp.run(Settings, cli_args=arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = "-".join(str(part) for part in problem["loc"]).replace("_", "-")
            print(f"limner-server: --{name}: {problem['msg']}, got {problem['input']!r}", file=sys.stderr)
        sys.exit(2)
    try:
        asyncio.run(_serve(settings))
    except OSError as error:
        sys.exit(f"limner-server: {error}")


async def _serve(settings: Settings) -> None:
    # torch takes seconds to import; --help and wrong settings need not wait for it.
    from limner_server.app import App
    from limner_server.errors import InvalidInputError
    from limner_server.telemetry import logs

    logs.configure(settings.log_level)
    try:
        app = App(settings)
    except InvalidInputError as error:
        print(f"limner-server: {error}", file=sys.stderr)
        sys.exit(2)
    port = await app.start()
    print(f"limner-server listening on {settings.host}:{port}; research software, not for diagnostic use", flush=True)
    await app.run_until_stopped()


if __name__ == "__main__":
    main()
