"""A real server process for tests: started, killed and started again on the same folders."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

_LISTENING = re.compile(r"listening on (\S+);")


class LiveServer:
    """`limner-server` on a free port of the loopback address, with its state below one folder."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.model_repository = folder / "model_repository"
        self._settings = {"threads": 2, **settings}
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def __enter__(self) -> "LiveServer":
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self, port: str = "0") -> None:
        """Start, and wait for the open port: a free one, or the one that it had before it was killed."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "limner_server", f"--port={port}", *flags),
                    *(f"--data-dir={self.data_dir}", f"--model-repository={self.model_repository}"),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        found = _LISTENING.search(self._process.stdout.readline())
        assert found, self.log()
        self.address = found[1]

    @property
    def pid(self) -> int:
        """Of the server's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Stop as Kubernetes would, by SIGTERM, and return the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """End without a word, as the kernel does when memory is short."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)

    def log(self) -> str:
        """Everything it has logged."""
        return (self.folder / "server.log").read_text()
