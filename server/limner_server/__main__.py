"""The `limner-server` command."""

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from limner_server.serve import serve
from limner_server.settings import Settings
from limner_server.workers import supervise


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

    def announce(port: int, metrics_port: int | None) -> None:
        notice = "research software, not for diagnostic use"
        print(f"limner-server listening on {settings.host}:{port}; {notice}", flush=True)
        if metrics_port is not None:
            print(f"metrics on {settings.metrics_host}:{metrics_port}", flush=True)

    if settings.workers == 1:
        serve(settings, announce)
    else:
        supervise(settings, announce)


if __name__ == "__main__":
    main()
