"""`limner read`: the web page in which readers judge the images of a reading."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.common import NOTICE, SERVER, Connections, Server, note
from limner.hosts import is_loopback

HOST, PORT = "127.0.0.1", 8600


def read(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one and prints it.")] = PORT,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM certificate of the page: https. Wants --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its PEM key.")] = None,
    insecure_network: Annotated[
        bool,
        typer.Option("--insecure-network", help="Serve other machines without https: tokens can be read on the way."),
    ] = False,
    server: Server = SERVER,
) -> None:
    """Serve the reading room, where a reader judges the images of a reading in a browser, until Ctrl-C.

    Readers need nothing but the address and their token, which `limner reading create` prints. A verdict that the
    server cannot take now waits in the reader's browser.

    \b
    Examples:
      limner read
      limner read --host 0.0.0.0 --certificate page.pem --key page.key --server limner.example:8500
    """  # noqa: D301  \b keeps the lines apart
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise typer.BadParameter("needs more: pip install 'limner[read]'", param_hint="limner read")
    if (certificate is None) != (key is None):
        raise typer.BadParameter("--certificate and --key go together", param_hint="--certificate")
    if certificate is None and not insecure_network and not is_loopback(host):
        raise typer.BadParameter(
            f"{host} can be reached from other machines, and tokens would cross the network in the clear; expected "
            "--certificate and --key, --insecure-network, or a loopback address behind a proxy that speaks https",
            param_hint="--host",
        )
    # Imported here: no other command needs a web server.
    from limner.reading import serve

    scheme = "https" if certificate else "http"
    shown = f"[{host}]" if ":" in host else host

    def announce(bound: int) -> None:
        print(f"reading room on {scheme}://{shown}:{bound}/; {NOTICE}", flush=True)

    serve(
        server,
        host,
        port,
        tls=Connections.tls,
        token=Connections.token,
        certificate=certificate,
        key=key,
        announce=announce,
    )
    note("reading room closed")
