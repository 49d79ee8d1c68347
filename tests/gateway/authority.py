"""An authority that signs certificates for the loopback address, by openssl."""

import subprocess
from pathlib import Path

from tests.gateway.real import OPENSSL


class Authority:
    """Signs certificates of this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        self._request("authority", self.certificate, self.key, "-addext", "keyUsage=critical,keyCertSign")

    def sign(self, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1", common_name: str = "") -> tuple[Path, Path]:
        """Return a certificate and its key: for `hosts`, as openssl writes them, and a common name, default `name`."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        signer = ("-CA", str(self.certificate), "-CAkey", str(self.key))
        extensions = ("-addext", f"subjectAltName={hosts}", "-addext", "basicConstraints=CA:FALSE")
        self._request(common_name or name, certificate, key, *signer, *extensions)
        return certificate, key

    def _request(self, name: str, certificate: Path, key: Path, *flags: str) -> None:
        assert OPENSSL
        command = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-out", str(certificate), "-keyout", str(key), *flags]
        subprocess.run(command, check=True, capture_output=True)
