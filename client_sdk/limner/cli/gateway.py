"""`limner gateway`: a DICOM node between a PACS and a Limner server."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import gateway_status
from limner.cli.common import SERVER, Server, connect
from limner.cli.gateway_status import FOLDER, Folder
from limner.cli.rules import Rules, rules_of
from limner.gateway.kinds import DEFAULT, Kind

if TYPE_CHECKING:
    from limner.gateway.destinations import Destination
    from limner.gateway.limits import Peer
    from limner.gateway.receiver import Tls

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Receive studies as a DICOM node, have them scored, and send reports back to the PACS.",
)


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
        list[str] | None,
        typer.Option(
            metavar="AET[@HOST[:PORT]]",
            help="Who may send; again for another; default: anyone. PORT: where it takes storage commitment reports.",
        ),
    ] = None,
    associations: Annotated[int, typer.Option(min=1, help="Associations at a time.")] = 32,
    peer_associations: Annotated[int, typer.Option(min=1, help="Of these, of one AE title at one address.")] = 16,
    max_instance_mib: Annotated[float, typer.Option(min=0.1, help="Largest instance that is taken, in MiB.")] = 512,
    min_free_gib: Annotated[
        float, typer.Option(min=0, help="Nothing is taken that would leave less free on the disk, in GiB.")
    ] = 1,
    quiet_s: Annotated[float, typer.Option(min=0, help="A study is complete after so long without an instance.")] = 30,
    rules: Rules = None,
    complete_count: Annotated[
        int, typer.Option(min=0, help="A study of so many instances is complete at once; 0: no number is.")
    ] = 0,
    commitment: Annotated[
        bool,
        typer.Option(
            "--commitment",
            help="Answer storage commitment, which completes a study; images are kept --keep-hours all the same.",
        ),
    ] = False,
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
    """Run the node until SIGTERM or Ctrl-C.

    What is unfinished then goes on at the next start.

    \b
    Examples:
      limner gateway run --model cervix:production --pacs ORTHANC@pacs.example:4242
      limner gateway run --model cervix --stow https://pacs.example/dicom-web --peer MODALITY --quiet-s 60
    """  # noqa: D301  \b keeps the lines apart
    if find_spec("pynetdicom") is None:
        raise typer.BadParameter("needs pynetdicom: pip install 'limner[gateway]'", param_hint="limner gateway")
    from limner.gateway import node
    from limner.gateway.journal import Journal
    from limner.gateway.limits import Limits
    from limner.gateway.receiver import ListenSettings

    _log_without_patients()
    tls = _tls(tls_certificate, tls_key, tls_ca)
    limits = Limits(_peers(peer or ()), associations, peer_associations, int(max_instance_mib * 2**20))
    settings = node.GatewaySettings(
        model,
        rules_of(rules),
        quiet_s,
        complete_count,
        attempts,
        keep_hours * 3600,
        commitment,
        send=tuple(send or DEFAULT),
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())

    def announce(bound: int) -> None:
        print(f"listening on {host}:{bound} as {ae_title}", flush=True)

    destination = _destination(pacs, stow, ae_title, tls)
    journal = Journal(folder, int(min_free_gib * 2**30))
    try:
        node.run(
            journal,
            ListenSettings(ae_title, host, port, limits, tls),
            lambda: connect(server),
            destination,
            settings,
            stopped,
            announce,
        )
    finally:
        journal.close()


for command in (gateway_status.status, gateway_status.show, gateway_status.retry, gateway_status.dismiss):
    app.command()(command)


def _log_without_patients() -> None:
    """Log what the gateway says; pydicom's and pynetdicom's warnings quote names, dates and UIDs."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("limner").setLevel(logging.INFO)
    for quoting in ("pydicom", "pynetdicom", "highdicom", "dicomweb_client"):
        logging.getLogger(quoting).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _peers(texts: Iterable[str]) -> "tuple[Peer, ...]":
    from limner.gateway.limits import Peer

    try:
        return tuple(map(Peer.parse, texts))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error


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
