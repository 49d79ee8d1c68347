"""What can be found wrong with the settings before anything is started: all of it at once, in a moment.

What takes a connection or a model to find out is found by the start itself.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from limner_server.errors import LimnerError
from limner_server.settings import Settings
from limner_server.workers import reserved_port

_NEAR = 0.9
"""Likeness of a name to the one that was meant; Kubernetes' LIMNER_SERVICE_PORT has 0.84 of LIMNER_METRICS_PORT."""


def problems(settings: Settings) -> list[str]:
    """Return a sentence for each thing that is wrong: what, what was found, and what was expected."""
    found = [
        *_misspelt(os.environ),
        *_unwritable("data-dir", settings.data_dir),
        *_unwritable("model-repository", settings.model_repository),
        *_missing("weights-dir", settings.weights_dir),
        *_database(settings),
        *_ports(settings),
    ]
    # torch takes seconds to import, and where nothing else is wrong the start will look.
    return [*found, *_device(settings)] if found else []


def _misspelt(environment: Iterable[str]) -> Iterator[str]:
    """A variable that is nearly a setting's; what else begins like one may be a client's, or Kubernetes'."""
    prefix = str(Settings.model_config["env_prefix"])
    known = [prefix + field.upper() for field in Settings.model_fields]
    for name in sorted(environment):
        if name.startswith(prefix) and name.upper() not in known:
            for near in get_close_matches(name.upper(), known, 1, _NEAR):
                yield f"{name} in the environment is no setting; expected {near}"


def _unwritable(flag: str, folder: Path) -> Iterator[str]:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield f"--{flag}: expected a folder, got {str(folder)!r}: {existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"--{flag}: expected a folder that can be written to, got {str(folder)!r}: {existing} cannot"


def _missing(flag: str, folder: Path | None) -> Iterator[str]:
    if folder is not None and not folder.is_dir():
        yield f"--{flag}: expected a folder, got {str(folder)!r}: there is none"


def _database(settings: Settings) -> Iterator[str]:
    if settings.database_url:
        from limner_server.state.database import prepare

        try:
            prepare(settings.database_url).dispose()
        except LimnerError as error:
            yield str(error)


def _ports(settings: Settings) -> Iterator[str]:
    places = {
        "port": (settings.host, settings.port),
        "health-port": (settings.host, settings.health_port),
        "metrics-port": (settings.metrics_host, settings.metrics_port),
    }
    with contextlib.ExitStack() as held:  # all at once, so that no two of them are one
        for flag, (host, port) in places.items():
            try:
                if port is not None:
                    held.enter_context(reserved_port(host, port))
            except OSError as error:
                yield f"--{flag}: {error}"


def _device(settings: Settings) -> Iterator[str]:
    if settings.device == "cuda":
        from limner_server.app import choose_device

        try:
            choose_device(settings.device)
        except LimnerError as error:
            yield str(error)
