"""A real PostgreSQL from Debian for tests, on a free port of the loopback address and a folder of its own."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tests.gateway.orthanc import free_port

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
"""Debian keeps the server's programs off the PATH."""

THERE = (PROGRAMS / "postgres").exists()
WANTED = THERE or bool(os.environ.get("CI"))
WHY_NOT = "needs Debian's postgresql"


class Postgres:
    """One server; killed and started again at will.

    Its folder is no `tmp_path`: those are root's only, and it does not run as root.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = TemporaryDirectory(prefix="limner-postgresql-", ignore_cleanup_errors=True)
        self._data = f"{self._folder.name}/data"
        if os.geteuid() == 0:
            shutil.chown(self._folder.name, "postgres")
        self._run("initdb", f"--pgdata={self._data}", "--username=limner", "--auth=trust", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Postgres":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", self._folder.name, "-F"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                _as_postgres("postgres", "-D", self._data, *options), stdout=log, stderr=log, cwd="/"
            )
        for _ in range(100):
            ready = [PROGRAMS / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        """End it as a crash would, its children with it."""
        assert self._process is not None
        self._run("pg_ctl", "stop", f"--pgdata={self._data}", "--mode=immediate", "--silent")
        self._process.wait(timeout=10)

    def database(self) -> str:
        """URL of a new database."""
        name = f"limner_{uuid4().hex[:8]}"
        self._run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=limner", name)
        return f"postgresql://limner@127.0.0.1:{self.port}/{name}"

    @property
    def _log(self) -> Path:
        return Path(self._folder.name, "postgres.log")

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(_as_postgres(program, *arguments), capture_output=True, text=True, check=False, cwd="/")
        assert ended.returncode == 0, ended.stderr


def _as_postgres(program: str, *arguments: str) -> list[str]:
    command = [str(PROGRAMS / program), *arguments]
    return ["runuser", "--user=postgres", "--", *command] if os.geteuid() == 0 else command
