"""`limner gateway`: a DICOM node between a PACS and a Limner server."""

import logging
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import gateway_status
from limner.cli.common import SERVER, Server, connect
from limner.cli.gateway_status import FOLDER, Folder
from limner.cli.nodes import (
    AE_TITLE,
    HOST,
    PORT,
    AeTitle,
    TlsCa,
    TlsCertificate,
    TlsKey,
    need_gateway,
    node_tls,
    own_title,
    tls_pair,
)
from limner.cli.rules import Rules, rules_of
from limner.gateway.kinds import DEFAULT, Kind
from limner.names import NAME

if TYPE_CHECKING:
    from limner.gateway.destinations import Destination
    from limner.gateway.limits import Peer
    from limner.gateway.receiver import Tls

_MODEL = re.compile(f"{NAME}(:{NAME})?")

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
            help="Send reports there by STOW-RS; credentials: LIMNER_DICOMWEB_TOKEN, or LIMNER_DICOMWEB_USER and "
            "…_PASSWORD.",
        ),
    ] = "",
    send: Annotated[
        list[Kind] | None,
        typer.Option(
            help="What goes back for a series; again for another. heat-map: a parametric map; picture: it over slices. "
            "Default: report."
        ),
    ] = None,
    ae_title: AeTitle = AE_TITLE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one and prints it.")] = PORT,
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
    rules: Rules = None,
    attempts: Annotated[int, typer.Option(min=1, help="Failures before a study is given up.")] = 5,
    keep_hours: Annotated[
        float, typer.Option(min=0, help="How long to keep the images of studies that are done.")
    ] = 24,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
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
    need_gateway("limner gateway")
    from limner.gateway import node
    from limner.gateway.journal import Journal
    from limner.gateway.limits import Limits
    from limner.gateway.receiver import ListenSettings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("limner").setLevel(logging.INFO)
    ae_title = own_title(ae_title)
    tls_files = (tls_certificate, tls_key, tls_ca)
    if bool(pacs) == bool(stow):
        raise typer.BadParameter("give one of --pacs and --stow", param_hint="--pacs")
    ca_of_service = bool(stow) and tls_certificate is None and tls_key is None  # and nobody else is asked for TLS
    tls = None if ca_of_service else node_tls(*tls_files)
    destination = _service(stow, *tls_files) if stow else _pacs(pacs, ae_title, tls)
    limits = Limits(_peers(peer or ()), associations, peer_associations, int(max_instance_mib * 2**20))
    settings = node.GatewaySettings(
        _model(model),
        rules_of(rules),
        quiet_s,
        complete_count,
        attempts,
        keep_hours * 3600,
        commitment,
        send=tuple(send or DEFAULT),
    )
    signals: list[int] = []  # no Event: a handler that runs while this thread has its lock would wait for itself
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))

    def announce(bound: int) -> None:
        print(f"listening on {host}:{bound} as {ae_title}", flush=True)

    journal = Journal(folder, int(min_free_gib * 2**30))
    try:
        node.run(
            journal,
            ListenSettings(ae_title, host, port, limits, tls),
            lambda: connect(server),
            destination,
            settings,
            lambda: bool(signals),
            announce,
        )
    finally:
        journal.close()


for command in (gateway_status.status, gateway_status.show, gateway_status.retry, gateway_status.dismiss):
    app.command()(command)


def _model(text: str) -> str:
    if not _MODEL.fullmatch(text):
        expected = "NAME, NAME:VERSION or NAME:ALIAS, of letters, digits, '.', '_' and '-'"
        raise typer.BadParameter(f"{text!r}; expected {expected}", param_hint="--model")
    return text


def _peers(texts: Iterable[str]) -> "tuple[Peer, ...]":
    from limner.gateway.limits import Peer

    try:
        return tuple(map(Peer.parse, texts))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--peer") from error


def _service(url: str, certificate: Path | None, key: Path | None, ca: Path | None) -> "Destination":
    from limner.gateway.destinations import Dicomweb
    from limner.gateway.peers import http_session

    session = http_session(ca=ca, certificate=tls_pair(certificate, key, ca))
    try:
        return Dicomweb(url, session)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--stow") from error


def _pacs(text: str, calling: str, tls: "Tls | None") -> "Destination":
    from limner.gateway.destinations import Pacs

    try:
        return Pacs.parse(text, calling, tls.client_context() if tls else None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pacs") from error
