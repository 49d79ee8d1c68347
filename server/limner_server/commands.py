"""What `limner-server` does besides serving: `audit` shows who did what, `sign` signs a version of a model."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, SettingsConfigDict

from limner_server.settings import Settings

if TYPE_CHECKING:
    from limner_server.state.audit import AuditEntry

_DEFAULTS = Settings.model_fields
_WIDE = 2000
"""Characters; more than a line of the audit log has."""


def _config(name: str) -> SettingsConfigDict:
    return SettingsConfigDict(
        env_prefix="LIMNER_",
        frozen=True,
        cli_prog_name=f"limner-server {name}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_shortcuts={"json-lines": "json"},
        extra="forbid",
    )


class Audit(BaseSettings):
    """Show who did what to which cohort, model or job: the newest last, from the database of a server."""

    model_config = _config("audit")

    data_dir: Annotated[Path, Field(description="As the server's.")] = _DEFAULTS["data_dir"].default
    database_url: Annotated[str, Field(description="As the server's; empty: SQLite in the data folder.")] = ""
    target: Annotated[str, Field(description="Only what was done to this cohort, model, NAME:VERSION or job.")] = ""
    principal: Annotated[str, Field(description="Only what was done by this principal, such as token:ada.")] = ""
    limit: Annotated[int, Field(ge=1, description="The last so many.")] = 100
    json_lines: Annotated[bool, Field(description="One JSON object a line.")] = False

    def cli_cmd(self) -> None:
        """Print the entries."""
        # SQLAlchemy and rich take a while to import; wrong flags need not wait for it.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns = ("time", "principal", "method", "target", "status", "peer", "request_id")
        rows = [
            [entry.time.isoformat(timespec="seconds"), *(getattr(entry, name) for name in columns[1:])]
            for entry in reversed(self._entries())
        ]
        if self.json_lines:
            for row in rows:
                print(json.dumps(dict(zip(columns, row, strict=True))))
            return
        table = Table(*columns, box=None, header_style="bold")
        for row in rows:
            # A target is its caller's text: no markup of rich's, and nothing for the terminal to obey.
            table.add_row(*(Text(_printable(value) or "-") for value in row))
        console = Console(width=_WIDE)  # else columns are cut to the terminal, or in a pipe to 80 characters
        console.print(table, soft_wrap=True)

    def _entries(self) -> "list[AuditEntry]":
        """Read the entries, newest first; ends the process where that cannot be done."""
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        from limner_server.errors import LimnerError
        from limner_server.state.audit import AuditLog
        from limner_server.state.database import open_database

        file = self.data_dir / "limner.sqlite"
        if not self.database_url and not file.is_file():
            sys.exit(f"limner-server: {file}: no such file; expected --data-dir or --database-url of a server")
        try:
            log = AuditLog(open_database(self.database_url or f"sqlite:///{file.absolute()}"))
            return log.entries(self.target, self.limit, self.principal)
        except LimnerError as error:
            sys.exit(f"limner-server: {error}")
        except SQLAlchemyError as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            sys.exit(f"limner-server: the database cannot be read: {' '.join(str(reason).split())}")


class Sign(BaseSettings):
    """Sign a version of a model, for servers with --model-signing-key. The key need not be where the server is."""

    model_config = _config("sign")

    model: CliPositionalArg[Annotated[str, Field(pattern=r"^[^:]+:[0-9]+$", description="NAME:VERSION")]]
    key: Annotated[Path, Field(description="PEM private key of Ed25519: openssl genpkey -algorithm ed25519.")]
    model_repository: Annotated[Path, Field(description="As the server's.")] = _DEFAULTS["model_repository"].default

    def cli_cmd(self) -> None:
        """Check that the version is whole, and write its signature."""
        from limner_server.access.signature import SIGNATURE_FILE, load_private_key, sign
        from limner_server.errors import LimnerError
        from limner_server.networks.repository import CARD_FILE, ModelRepository, check_artifacts

        name, _, version = self.model.partition(":")
        repository = ModelRepository(self.model_repository)
        try:
            key = load_private_key(self.key)
            repository.card(name, int(version))
            found = repository.get(name, int(version))
            check_artifacts(found)
            sign(found.folder / CARD_FILE, key)
        except (LimnerError, OSError, ValueError) as error:
            sys.exit(f"limner-server: {error}")
        print(found.folder / SIGNATURE_FILE)


def _printable(text: str | None) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text or "")


def _run(command: type[BaseSettings]) -> Callable[[list[str]], None]:
    def run(words: list[str]) -> None:
        CliApp.run(command, cli_args=words)

    return run


COMMANDS: Mapping[str, Callable[[list[str]], None]] = {"audit": _run(Audit), "sign": _run(Sign)}
