"""The `limner-server` command."""

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from limner_server.checks import problems
from limner_server.commands import COMMANDS
from limner_server.serve import serve
from limner_server.settings import Settings
from limner_server.workers import supervise


def main(arguments: list[str] | None = None) -> None:
    """Read the settings from flags and environment, and serve until told to stop; or run one of `COMMANDS`.

    Ends with 2 and every problem listed where a setting is wrong, and with 1 where the database cannot be reached.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words and words[0] in COMMANDS:
            COMMANDS[words[0]](words[1:])
            return
        settings = CliApp.run(Settings, cli_args=words)
    except ValidationError as error:
        for problem in error.errors():
            name = "-".join(str(part) for part in problem["loc"]).replace("_", "-")
            print(f"limner-server: --{name}: {problem['msg']}, got {problem['input']!r}", file=sys.stderr)
        sys.exit(2)

    if found := problems(settings):
        for sentence in found:
            print(f"limner-server: {sentence}", file=sys.stderr)
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
