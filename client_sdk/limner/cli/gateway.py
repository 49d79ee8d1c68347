"""`limner gateway`: a DICOM node between a PACS and a Limner server."""

import logging
import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from limner.cli.common import SERVER, AsJson, Server, connect, make_table, note, print_json, print_table
from limner.cli.rules import Rules, rules_of
from limner.gateway.kinds import DEFAULT, Kind

if TYPE_CHECKING:
    from limner.gateway.destinations import Destination
    from limner.gateway.journal import Journal
    from limner.gateway.receiver import Tls

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Receive studies as a DICOM node, have them scored, and send reports back to the PACS.",
)

Folder = Annotated[
    Path,
    typer.Option("--journal", envvar="LIMNER_GATEWAY_JOURNAL", help="Folder of the journal; holds patients' images."),
]
FOLDER = Path("limner-gateway")


@app.command()
def run(
    model: Annotated[str, typer.Option(help="NAME, NAME:VERSION or NAME:ALIAS that scores.")],
    pacs: Annotated[str, typer.Option(metavar="AET@HOST:PORT", help="Send reports there by C-STORE; or --stow.")] = "",
    stow: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Send reports there by STOW-RS; credentials: LIMNER_STOW_TOKEN, or LIMNER_STOW_USER and …_PASSWORD.",
        ),
    ] = "",
    send: Annotated[
        list[Kind] | None,
        typer.Option(
            help="What goes back for a series; again for another. heat-map: a parametric map; picture: it over slices. "
            "Default: report."
        ),
    ] = None,
    ae_title: Annotated[str, typer.Option("--aet", help="AE title of this node.")] = "LIMNER",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104 - a modality is elsewhere
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one and prints it.")] = 11112,
    peer: Annotated[
        list[str] | None, typer.Option(help="AE title that may send; again for another. Default: any.")
    ] = None,
    associations: Annotated[int, typer.Option(min=1, help="Associations at a time.")] = 16,
    quiet_s: Annotated[float, typer.Option(min=0, help="A study is complete after so long without an instance.")] = 30,
    rules: Rules = None,
    attempts: Annotated[int, typer.Option(min=1, help="Failures before a study is given up.")] = 5,
    keep_hours: Annotated[
        float, typer.Option(min=0, help="How long to keep the images of studies that are done.")
    ] = 24,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM certificate of this node: DICOM over TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Whose signature a peer's certificate must bear.")] = None,
    folder: Folder = FOLDER,
    server: Server = SERVER,
) -> None:
    """Run the node until SIGTERM or Ctrl-C; what is unfinished then goes on at the next start.

    \b
    Examples:
      limner gateway run --model cervix:production --pacs ORTHANC@pacs.example:4242
      limner gateway run --model cervix --stow https://pacs.example/dicom-web --peer MODALITY --quiet-s 60
    """  # noqa: D301  \b keeps the lines apart
    if find_spec("pynetdicom") is None:
        raise typer.BadParameter("needs pynetdicom: pip install 'limner[gateway]'", param_hint="limner gateway")
    from limner.gateway import node
    from limner.gateway.journal import Journal
    from limner.gateway.receiver import ListenSettings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("limner").setLevel(logging.INFO)
    tls = _tls(tls_certificate, tls_key, tls_ca)
    listen = ListenSettings(ae_title, host, port, frozenset(peer or ()), associations, tls)
    settings = node.GatewaySettings(
        model, rules_of(rules), quiet_s, attempts, keep_hours * 3600, send=tuple(send or DEFAULT)
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())

    def announce(bound: int) -> None:
        print(f"listening on {host}:{bound} as {ae_title}", flush=True)

    journal = Journal(folder)
    node.run(
        journal, listen, lambda: connect(server), _destination(pacs, stow, ae_title, tls), settings, stopped, announce
    )
    journal.close()


@app.command()
def status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show how many studies stand where, and everything that is dead, with the reason."""
    journal = _open(folder)
    studies, dead = journal.studies(), journal.dead_instances()
    counts = {state: sum(study.state == state for study in studies) for state in ("open", "scored", "done", "dead")}
    given_up = {study.uid: study.reason for study in studies if study.state == "dead"}
    waiting = {study.uid: study.reason for study in studies if study.waits and study.state in ("open", "scored")}
    if as_json:
        instances = [{"instance": one.uid, "study": one.study, "peer": one.peer, "reason": one.reason} for one in dead]
        print_json({"studies": counts, "dead": given_up, "waiting": waiting, "dead_instances": instances})
        return
    note(", ".join(f"{number} {state}" for state, number in counts.items()))
    if given_up or waiting or dead:
        table = make_table("what is not well", "kind", "uid", "reason")
        for kind, rows in (("study given up", given_up), ("study waiting", waiting)):
            for uid, reason in rows.items():
                table.add_row(kind, uid, Text(reason))
        for one in dead:
            table.add_row("dead instance", one.uid, Text(one.reason))
        print_table(table)


@app.command()
def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="StudyInstanceUID.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show where one study stands, and what was left out of it."""
    journal = _open(folder)
    found = journal.study(study)
    if found is None:
        raise typer.BadParameter(f"no study {study!r} in {folder}", param_hint="STUDY")
    dead = {one.uid: one.reason for one in journal.dead_instances() if one.study == study}
    fields = {
        "study": found.uid,
        "state": found.state,
        "instances": found.revision,
        "results_unsent": len(journal.unsent(found)),
        "put_off": found.waits,
        "reason": found.reason,
        "dead_instances": dead,
    }
    if as_json:
        print_json(fields)
        return
    for name, value in fields.items():
        note(f"{name.replace('_', ' ')}: {value or 'none' if isinstance(value, dict | str) else value}")


@app.command()
def retry(
    study: Annotated[str, typer.Argument(metavar="[STUDY]", help="StudyInstanceUID; none: all.")] = "",
    folder: Folder = FOLDER,
) -> None:
    """Take up again what was given up, and studies with dead instances."""
    count = _open(folder).retry(study)
    if study and not count:
        raise typer.BadParameter(f"no study {study!r} in {folder} that was given up", param_hint="STUDY")
    note(f"{count} studies are taken up again")


def _open(folder: Path) -> "Journal":
    from limner.gateway.journal import FILE, Journal

    if not (folder / FILE).is_file():
        raise typer.BadParameter(
            f"{folder} holds no journal; expected the folder of `limner gateway run`", param_hint="--journal"
        )
    return Journal(folder)


def _tls(certificate: Path | None, key: Path | None, ca: Path | None) -> "Tls | None":
    from limner.gateway.receiver import Tls

    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("needs --tls-certificate and --tls-key", param_hint="--tls-…")
    return Tls(certificate, key, ca)


def _destination(pacs: str, stow: str, calling: str, tls: "Tls | None") -> "Destination":
    from requests import Session

    from limner.gateway.destinations import Dicomweb, Pacs

    if bool(pacs) == bool(stow):
        raise typer.BadParameter("give one of --pacs and --stow", param_hint="--pacs")
    if stow:
        session = Session()
        if token := os.environ.get("LIMNER_STOW_TOKEN"):
            session.headers["Authorization"] = f"Bearer {token}"
        elif user := os.environ.get("LIMNER_STOW_USER"):
            session.auth = (user, os.environ.get("LIMNER_STOW_PASSWORD", ""))
        return Dicomweb(stow, session)
    title, _, address = pacs.partition("@")
    host, _, port = address.rpartition(":")
    if not (title and host and port.isdigit()):
        raise typer.BadParameter(f"{pacs!r}; expected AET@HOST:PORT", param_hint="--pacs")
    return Pacs(title, host, int(port), calling, tls.client_context() if tls else None)
