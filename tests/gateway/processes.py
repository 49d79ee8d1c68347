"""The gateway as a process, and dcmtk's storescu as a modality."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from limner.gateway.journal import Journal

# Not the one that pynetdicom installs beside this interpreter under the same name.
_SYSTEM = os.pathsep.join(
    folder for folder in os.environ["PATH"].split(os.pathsep) if folder != sysconfig.get_path("scripts")
)
STORESCU = shutil.which("storescu", path=_SYSTEM)

_LISTENING = re.compile(r"listening on \S+:(\d+) as")
_ANSWERED = re.compile(r"I: Sending file: (?P<path>.+)|I: Received Store Response \((?P<answer>.+)\)")


class Gateway:
    """`limner gateway run` with a model named `model`.

    Parameters
    ----------
    journal
        Its folder; the log is beside it.
    flags
        Further options.
    """

    def __init__(self, journal: Path, *flags: str, quiet_s: float = 1) -> None:
        self.journal = journal
        self._flags = (f"--quiet-s={quiet_s}", *flags)
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> "Gateway":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log_file(self) -> Path:
        """What it logs, and its errors."""
        return self.journal.parent / "gateway.log"

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it listens; again on the same port."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "limner.cli.main", "gateway", "run", f"--journal={self.journal}"),
                    *("--host=127.0.0.1", f"--port={self.port}", "--model=model", *self._flags),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        found = _LISTENING.search(self._process.stdout.readline())
        assert found, self.log_file.read_text()
        self.port = int(found[1])

    def stop(self) -> int:
        """End it as systemd would, and return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends, and return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout=30)

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    def status(self) -> dict[str, object]:
        """What `limner gateway status --json` tells."""
        ended = self.command("status", "--json")
        assert ended.returncode == 0, ended.stderr
        found: dict[str, object] = json.loads(ended.stdout)
        return found

    def counts(self) -> dict[str, int]:
        """How many studies stand where: as `status` tells, without a process of its own."""
        journal = Journal(self.journal)
        studies = journal.totals().studies
        journal.close()
        return studies

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `limner gateway` with these arguments on its journal."""
        return subprocess.run(
            [sys.executable, "-m", "limner.cli.main", "gateway", *arguments, f"--journal={self.journal}"],
            capture_output=True,
            text=True,
            check=False,
        )


def send(
    port: int,
    paths: Sequence[Path],
    calling: str = "MODALITY",
    called: str = "LIMNER",
    flags: Sequence[str] = (),
) -> int:
    """Send files as a modality would; return storescu's exit status."""
    return storescu(port, paths, calling, called, flags).returncode


def acknowledged(port: int, paths: Sequence[Path]) -> set[Path]:
    """Send files, and return those that were acknowledged with success."""
    found, path = set(), Path()
    for told in _ANSWERED.finditer(storescu(port, paths, flags=["-v", "-nh"]).stdout):
        if told["path"]:
            path = Path(told["path"])
        elif told["answer"] == "Success":
            found.add(path)
    return found


def storescu(
    port: int,
    paths: Sequence[Path],
    calling: str = "MODALITY",
    called: str = "LIMNER",
    flags: Sequence[str] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run dcmtk's storescu."""
    assert STORESCU
    return subprocess.run(
        [STORESCU, *flags, "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
