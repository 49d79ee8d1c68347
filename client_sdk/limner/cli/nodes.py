"""What the commands that talk to a PACS share: the options of this node, and whether what they need is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from limner.gateway.journal import Journal
    from limner.gateway.receiver import Tls

AeTitle = Annotated[str, typer.Option("--aet", help="AE title of this node.")]
AE_TITLE = "LIMNER"
HOST, PORT = "0.0.0.0", 11112  # noqa: S104 - a modality or a PACS calls from elsewhere
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM certificate of this node: DICOM over TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="Its PEM key.")]
TlsCa = Annotated[Path | None, typer.Option(help="Whose signature a peer's certificate must bear.")]


def need_gateway(command: str) -> None:
    """Refuse a command where `limner[gateway]` is not installed."""
    if find_spec("pynetdicom") is None or find_spec("dicomweb_client") is None:
        raise typer.BadParameter("needs more: pip install 'limner[gateway]'", param_hint=command)


def node_tls(certificate: Path | None, key: Path | None, ca: Path | None) -> "Tls | None":
    """Return DICOM TLS as the options have it."""
    from limner.gateway.receiver import Tls

    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("needs --tls-certificate and --tls-key", param_hint="--tls-…")
    return Tls(certificate, key, ca)


def open_journal(folder: Path) -> "Journal":
    """Open the journal of a gateway, which there has to be."""
    from limner.gateway.journal import FILE, Journal

    if not (folder / FILE).is_file():
        raise typer.BadParameter(
            f"{folder} holds no journal; expected the folder of `limner gateway run`", param_hint="--journal"
        )
    return Journal(folder)
