"""Certificates for tests that speak TLS, made by openssl."""

import subprocess
from pathlib import Path


def make_certificate(folder: Path, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
    """Make a self-signed certificate for `hosts`, written as openssl does, and its key, both PEM."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={hosts}")
    command = ["openssl", "req", *kind, *names, "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
