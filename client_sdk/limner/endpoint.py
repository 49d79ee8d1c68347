"""Where a server is and how it is reached, plain or by TLS; and when it is not reached, why.

The one place that knows of credentials. The options of a connection are in `limner.channel`, several servers in
`limner.servers`.
"""

import socket
import ssl
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import grpc
from grpc import aio

from limner.channel import Role, channel_options
from limner.errors import InvalidInputError
from limner.token import Token, secured

# Longest wait for each step of a look at why a server is not reached, in seconds.
PROBE_S = 2.0
_UNLIKED = "it ends the connection, as where it wants a client certificate that it knows; Tls(certificate=..., key=...)"


@dataclass(frozen=True)
class Tls:
    """The connection is encrypted, and the server's certificate must be for the host of its address.

    Attributes
    ----------
    ca
        PEM file of the authorities that may have signed the server's certificate, or of a self-signed one itself;
        default: the authorities that this machine trusts.
    certificate, key
        PEM files of what is shown to a server that asks who calls, and of its key without a password; both or neither.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return these files as Python's TLS takes them, having checked them.

        Raises
        ------
        InvalidInputError
            Naming the file that is not what it should be.
        OSError
            A file cannot be read.
        """
        for path in (self.ca, self.certificate, self.key):
            if path is not None:
                Path(path).read_bytes()  # an OSError of `ssl` does not say which
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise _wrong("tls.ca", self.ca, "PEM certificates") from error
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python's default since 3.13, not gRPC's
        context.set_alpn_protocols(["h2"])
        if self.certificate is None and self.key is None:
            return context
        if self.certificate is None or self.key is None:
            raise _wrong("tls.certificate and tls.key", self.certificate or self.key, "both or neither")
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # asks nobody for one
        except ssl.SSLError as error:
            pair = f"{self.certificate} and {self.key}"
            raise _wrong("tls.certificate and tls.key", pair, "a PEM certificate and its key, not encrypted") from error
        return context

    def credentials(self) -> grpc.ChannelCredentials:
        """Return these files as gRPC takes them."""
        # gRPC has a list of its own, in which no authority of a hospital is.
        trusted = self.ca or ssl.get_default_verify_paths().cafile
        files = (trusted, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))


class Endpoint:
    """One server, as a client sees it.

    Parameters
    ----------
    address
        "host:port".
    tls
        None for a plain connection. Raises what `Tls.context` does.
    token
        What says who calls, see `limner.token.secured`, which raises what is wrong with it.
    tracing
        Whether calls are traced; ModuleNotFoundError where the extra for it is not installed.
    role
        What its channels lead to.
    host
        That the certificate must be for; default: the one of the address.
    """

    def __init__(
        self,
        address: str,
        tls: Tls | None,
        token: Token | None = None,
        tracing: bool = False,
        role: Role = Role.ALONE,
        host: str = "",
    ) -> None:
        self.address = address
        self._tracing = import_module("limner.tracing") if tracing else None
        self._context = tls.context() if tls else None
        self._credentials = secured(address, tls.credentials() if tls else None, token)
        self._options = [*channel_options(role), *([("grpc.ssl_target_name_override", host)] if host and tls else [])]
        self._host = host

    def open(self) -> grpc.Channel:
        """Return a channel to the server; nothing is sent yet."""
        if self._credentials is None:
            channel = grpc.insecure_channel(self.address, self._options)
        else:
            channel = grpc.secure_channel(self.address, self._credentials, self._options)
        return self._tracing.traced(channel) if self._tracing else channel

    def open_async(self) -> aio.Channel:
        """Return a channel for asyncio; nothing is sent yet."""
        interceptors = self._tracing.interceptors() if self._tracing else ()
        if self._credentials is None:
            return aio.insecure_channel(self.address, self._options, interceptors=interceptors)
        return aio.secure_channel(self.address, self._credentials, self._options, interceptors=interceptors)

    def obstacle(self) -> str:
        """Return what of TLS stands between here and the server, as a clause; empty where it is something else.

        gRPC tells of one of a host's addresses only, and nothing of a certificate that is for another host.
        """
        host, port = split(self.address)
        try:
            with socket.create_connection((host, port), PROBE_S) as connection:
                return (
                    _refusal(connection, self._host or host, self._context) if self._context else _secrecy(connection)
                )
        except (OSError, ValueError):
            return ""


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address; ValueError where it has none."""
    host, _, port = address.removeprefix("dns:").lstrip("/").rpartition(":")
    return host.strip("[]"), int(port)


def _refusal(connection: socket.socket, host: str, context: ssl.SSLContext) -> str:
    """Return why TLS does not come about on a connection; empty where it does."""
    try:
        with context.wrap_socket(connection, server_hostname=host) as secure:
            # A server of HTTP/2 speaks first; gRPC's says not a word where it does not like a certificate.
            return "" if secure.recv(1) else _UNLIKED
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return "it does not speak TLS, and this connection does"
        return f"TLS fails: {error.reason}"


def _secrecy(connection: socket.socket) -> str:
    """Return whether the other side of a plain connection wants TLS, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLError:
        return ""
    return "it speaks TLS, and this connection does not; give tls=Tls(...), or limner --tls"


def _wrong(field: str, value: object, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{field} is {str(value)!r}; expected {expected}", field=field, expected=expected)
