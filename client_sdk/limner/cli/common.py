"""What all commands share: the server and how it is reached, `--json`, where output goes, progress bars.

Results go to standard output, everything else to standard error, so that `--json` can be piped.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from limner.channel import DEFAULT_ADDRESS
from limner.client import Client
from limner.endpoint import Tls
from limner.token import TokenFile
from limner.types import Result

NOTICE = "research use only, not for diagnostic use"

FAILED = 1
UNAVAILABLE = 3

# Columns of a table in a file or a pipe: nothing is folded.
WIDEST = 10_000

Server = Annotated[
    list[str],
    typer.Option(
        "--server",
        envvar="LIMNER_SERVER",
        metavar="HOST:PORT",
        help="The server; several with commas between or --server again, or dns:///NAME:PORT.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME:VERSION or NAME:ALIAS.")]
SERVER = [DEFAULT_ADDRESS]

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class Connections:
    """How this command reaches servers, set by the options of `limner` itself before any command runs."""

    tls: Tls | None = None
    token: TokenFile | None = None


def connect(server: list[str]) -> Client:
    """Return a client of the servers that `--server` names."""
    return Client(",".join(server), tls=Connections.tls, token=Connections.token)


def note(message: str) -> None:
    """Say something to a person, on standard error."""
    err.print(message, markup=False)


def print_json(content: Result | Mapping[str, Any]) -> None:
    """Print a result as one JSON object that says what it may be used for."""
    fields = content.to_dict() if isinstance(content, Result) else content
    sys.stdout.write(to_json({"notice": NOTICE, **fields}, indent=2, inf_nan_mode="null").decode() + "\n")


def print_table(table: Table) -> None:
    """Print a table, as wide as it is where standard output is not a terminal."""
    if not out.is_terminal:
        out.width = Measurement.get(out, out.options.update(max_width=WIDEST), table).maximum
    out.print(table)


def make_table(title: str, *columns: str) -> Table:
    """Return an empty table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


class _Rate(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress_bar(*, counts: bool = False) -> Iterator[Progress]:
    """Show progress on standard error, where that is a terminal; with `counts`, how many are done and how fast."""
    done = (MofNCompleteColumn(), _Rate()) if counts else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *done, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


def percent(value: float) -> str:
    """Format a share."""
    return f"{100 * value:.1f} %"
