"""What the commands that talk to a PACS share: the options of this node, and whether what they need is installed."""

from importlib.util import find_spec
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
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


def own_title(text: str) -> str:
    """Return the AE title of this node."""
    from limner.gateway.peers import checked_title

    try:
        return checked_title(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--aet") from error


def tls_pair(certificate: Path | None, key: Path | None, ca: Path | None) -> tuple[Path, Path] | None:
    """Return the certificate of this node and its key, once these files and `ca` were found to be of use."""
    if (certificate is None) != (key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key go together", param_hint="--tls-…")
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    if ca:
        _check_pem("--tls-ca", ca)
        try:
            context.load_verify_locations(ca)
        except SSLError as error:
            raise typer.BadParameter(f"{ca}; expected PEM certificates", param_hint="--tls-ca") from error
    if certificate is None or key is None:
        return None
    _check_pem("--tls-certificate", certificate)
    _check_pem("--tls-key", key)
    try:
        context.load_cert_chain(certificate, key)
    except SSLError as error:
        raise typer.BadParameter(
            f"{certificate} and {key}; expected a PEM certificate and the key that it is of",
            param_hint="--tls-certificate",
        ) from error
    return certificate, key


def _check_pem(option: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}; expected a PEM file", param_hint=option) from error


def node_tls(certificate: Path | None, key: Path | None, ca: Path | None) -> "Tls | None":
    """Return DICOM TLS as the options have it."""
    from limner.gateway.receiver import Tls

    if ca and certificate is None and key is None:
        raise typer.BadParameter("needs --tls-certificate and --tls-key", param_hint="--tls-ca")
    pair = tls_pair(certificate, key, ca)
    return Tls(*pair, ca) if pair else None


def open_journal(folder: Path) -> "Journal":
    """Open the journal of a gateway, which there has to be."""
    from limner.gateway.journal import FILE, Journal

    if not (folder / FILE).is_file():
        raise typer.BadParameter(
            f"{folder} holds no journal; expected the folder of `limner gateway run`", param_hint="--journal"
        )
    return Journal(folder)
