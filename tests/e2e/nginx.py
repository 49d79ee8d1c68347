"""A real nginx in front of servers, with the configuration that `deploy/nginx` offers and a certificate of its own."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.gateway.orthanc import free_port

PROGRAM = shutil.which("nginx")
CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "limner.conf"
STORES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""What nginx has folders for."""


class Nginx:
    """One nginx on a free port of 127.0.0.1.

    Parameters
    ----------
    folder
        For its files; made where it is missing.
    certificate, key
        Its own.
    servers
        Addresses of one or two servers behind it.
    clients
        Certificates of the only callers that it lets in; None for anybody.
    """

    def __init__(self, folder: Path, certificate: Path, key: Path, *servers: str, clients: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.address = f"localhost:{self.port}"
        self._log = folder / "error.log"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "limner.conf").write_text(self._adapted(certificate, key, servers, clients))
        stores = " ".join(f"{store}_temp_path {folder / store};" for store in STORES)
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; events {{ worker_connections 1024; }}\n"
            f"http {{ access_log {folder}/access.log; {stores} include {folder}/limner.conf; }}\n"
        )

    def _adapted(self, certificate: Path, key: Path, servers: tuple[str, ...], clients: Path | None) -> str:
        """Return the configuration with the changes that its comments ask for, and no others."""
        changes = {
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "/etc/nginx/limner/server.pem": str(certificate),
            "/etc/nginx/limner/server.key": str(key),
            "\n    server 127.0.0.1:8500 ": f"\n    server {servers[0]} ",
        }
        if len(servers) > 1:
            changes["# server 127.0.0.1:8501 "] = f"server {servers[1]} "
        if clients:
            changes["# ssl_client_certificate /etc/nginx/limner/clients.pem"] = f"ssl_client_certificate {clients}"
            changes["# ssl_verify_client "] = "ssl_verify_client "
        text = CONFIGURATION.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    def __enter__(self) -> Self:
        assert PROGRAM, "nginx is not installed"
        self._process = subprocess.Popen([PROGRAM, "-c", self.folder / "nginx.conf", "-e", self._log])
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.05)
            else:
                return self
        raise AssertionError(f"nginx does not listen: {self._log.read_text()}")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=10)
