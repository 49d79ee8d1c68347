"""A real server process for tests: started, killed and started again on the same folders."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType

_LISTENING = re.compile(r"listening on (\S+);")
_METRICS = re.compile(r"metrics on (\S+)")


class LiveServer:
    """`limner-server` on a free port of the loopback address, with its state below one folder."""

    module = "limner_server"

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.model_repository = folder / "model_repository"
        self._settings = {"threads": 2, **settings}
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        self.metrics_address = ""

    def __enter__(self) -> "LiveServer":
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait for the open port."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", self.module, "--port=0", *flags),
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
        if "metrics_port" in self._settings:
            found = _METRICS.search(self._process.stdout.readline())
            assert found, self.log()
            self.metrics_address = found[1]

    def metrics(self) -> str:
        """Text of the page of metrics."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30) as page:
            return str(page.read().decode())

    def setting(self, name: str) -> Path:
        """Return the file that a setting names."""
        found = self._settings[name]
        assert isinstance(found, Path)
        return found

    @property
    def port(self) -> int:
        """That it was told to listen on; 0 for a free one."""
        return int(str(self._settings.get("port", 0)))

    @property
    def pid(self) -> int:
        """Of the server's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Stop as Kubernetes would, by SIGTERM, and return the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, and return the exit status."""
        assert self._process is not None
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """End without a word, as the kernel does when memory is short."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)

    def log(self) -> str:
        """Everything it has logged."""
        return (self.folder / "server.log").read_text()
