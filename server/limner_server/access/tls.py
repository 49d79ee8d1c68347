"""The certificates of the port: read again for a new connection where their files have changed."""

import logging
import ssl
from pathlib import Path

import grpc

from limner_server.files import stamp

_log = logging.getLogger(__name__)


class TlsFiles:
    """What the server shows of itself, and who may have signed what its callers show.

    Parameters
    ----------
    certificate, key
        PEM: the server's certificate with those between it and its authority, and its key without a password.
    client_ca
        PEM authorities. With them a caller without a certificate of theirs has no connection at all.

    Raises
    ------
    OSError, ValueError
        Naming the file that cannot be read, or is not what it should be.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = [file for file in (certificate, key, client_ca) if file]
        self._seen = stamp(self._files)
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return them as gRPC takes them: it asks again for each new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._renewed,  # type: ignore[arg-type]  # None means "no change" (grpc.dynamic_ssl_server_credentials)
            require_client_authentication=self._client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC calls from threads of its own; None for no change. What is wrong is logged once and not taken."""
        try:
            seen = stamp(self._files)
            if seen == self._seen:
                return None
            self._seen = seen
            found = self._read()
            if stamp(self._files) != seen:  # they change this very moment: the next connection looks again
                return None
        except (OSError, ValueError) as error:
            _log.error("the renewed certificate is not taken, the old one stays: %s", error)
            return None
        _log.info("certificates have been renewed: %s", self._certificate)
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        check_pair(self._certificate, self._key)
        if self._client_ca:
            check_authorities(self._client_ca)
        pair = self._key.read_bytes(), self._certificate.read_bytes()
        authorities = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)


def check_pair(certificate: Path, key: Path) -> None:
    """Raise ValueError where two files are no certificate and its key, OSError where one cannot be read."""
    for file in (certificate, key):
        file.read_bytes()  # an OSError of `ssl` does not say which
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # asks nobody for one
    except ssl.SSLError as error:
        expected = "expected a PEM certificate and its own key, not encrypted"
        raise ValueError(f"{certificate} and {key}: {expected}") from error


def check_authorities(file: Path) -> None:
    """Raise ValueError where a file has no PEM certificates, OSError where it cannot be read."""
    file.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
    except ssl.SSLError as error:
        raise ValueError(f"{file}: expected PEM certificates of authorities") from error
