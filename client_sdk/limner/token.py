"""What a client shows of who it is: a bearer token, given as it is or by a function, and where it may be sent.

A token goes over TLS, or to this machine itself, and nowhere else; it is in no message, log or `repr`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import grpc

from limner.errors import InvalidInputError
from limner.hosts import is_loopback

ENVIRONMENT = "LIMNER_TOKEN"
NOT_HAD = "the token could not be had: "

Token = str | Callable[[], str]
"""A bearer token, or what returns one: it is asked for each call, and may answer from a cache."""

_BEARER = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, 2.1
_EXPECTED = "a bearer token (RFC 6750): letters, digits and -._~+/ only"


class TokenFile:
    """The token in a file, read anew for each call: what renews the file renews the token.

    Parameters
    ----------
    path
        The file; space around the token is ignored.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self) -> str:
        """Return the token. OSError where the file cannot be read."""
        return self.path.read_text(encoding="ascii").strip()


def secured(
    address: str, connection: grpc.ChannelCredentials | None, token: Token | None
) -> grpc.ChannelCredentials | None:
    """Return credentials of a connection, those of its calls with them; None for a plain connection without a token.

    Parameters
    ----------
    address
        One server's.
    connection
        TLS; None for a plain connection.
    token
        None: that of the environment variable LIMNER_TOKEN, if there is one.

    Raises
    ------
    InvalidInputError
        The token is none, or the connection would carry it in the clear to another machine.
    """
    given = "token"
    if token is None:
        given, token = ENVIRONMENT, os.environ.get(ENVIRONMENT) or None
    if token is None:
        return connection
    if isinstance(token, str):
        _check(token.strip(), given)
    if connection is None:
        if not _stays_here(address):  # by its name alone; what has to be looked up may be anywhere
            raise InvalidInputError(
                f"{given} is given and the connection to {address} is plain, so others could read it;"
                " expected tls=Tls(...), or limner --tls, or a loopback address",
                field=given,
                expected="TLS, or a loopback address",
            )
        # Plain on the wire; gRPC itself makes sure that the other end is on this machine.
        connection = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    return grpc.composite_channel_credentials(connection, grpc.metadata_call_credentials(_Bearer(token), "limner"))


class _Bearer(grpc.AuthMetadataPlugin):
    """Puts the token on each call; asked by threads of gRPC's."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            token = self._token if isinstance(self._token, str) else self._token()
            _check(token := token.strip(), "token")
        except Exception as error:  # the caller's function may raise whatever it likes, with whatever in its text
            callback((), RuntimeError(NOT_HAD + _reason(error)))
        else:
            callback((("authorization", f"Bearer {token}"),), None)


def _reason(error: Exception) -> str:
    match error:
        case InvalidInputError():
            return str(error)
        case OSError(filename=name, strerror=reason):
            return f"{name}: {reason}"
    return type(error).__name__


def _check(token: str, given: str) -> None:
    if not _BEARER.fullmatch(token):
        raise InvalidInputError(
            f"{given} is a text of {len(token)} characters that is none; expected {_EXPECTED}",
            field=given,
            expected=_EXPECTED,
        )


def _stays_here(address: str) -> bool:
    return is_loopback(re.sub(r"^(dns|ipv4|ipv6):/*", "", address).rpartition(":")[0])
