"""Listening for the reading room: uvicorn on a socket of our own, so that the port is known before it serves."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from limner.aio import AsyncClient
from limner.endpoint import Tls
from limner.reading.app import create_app
from limner.token import Token

CALL_TIMEOUT_S = 15.0


def serve(
    server: Sequence[str],
    host: str,
    port: int,
    *,
    tls: Tls | None = None,
    token: Token | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    announce: Callable[[int], None],
) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Parameters
    ----------
    server, tls, token
        The Limner servers, how they are reached, and what says who calls: the page, not its readers.
    host, port
        Where to listen; port 0 takes a free one.
    certificate, key
        PEM files of this page, for https.
    announce
        Called with the port once it is open.

    Raises
    ------
    OSError
        The port cannot be had, or the certificate not be read.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        asyncio.run(_serve(server, listening, tls, token, certificate, key, announce))


async def _serve(
    server: Sequence[str],
    listening: socket.socket,
    tls: Tls | None,
    token: Token | None,
    certificate: Path | None,
    key: Path | None,
    announce: Callable[[int], None],
) -> None:
    async with AsyncClient(server, timeout=CALL_TIMEOUT_S, tls=tls, token=token) as client:
        config = uvicorn.Config(
            create_app(client),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            timeout_graceful_shutdown=5,
        )
        config.load()
        listening.listen(config.backlog)
        announce(listening.getsockname()[1])
        await uvicorn.Server(config).serve(sockets=[listening])
