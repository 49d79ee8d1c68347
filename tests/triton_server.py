"""The real Triton for tests: started on a model repository of ours, stopped in mid-work, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import grpc
import pytest
import torch
from tritonclient.grpc import service_pb2, service_pb2_grpc

_TOOL = Path(__file__).parents[1] / "tools/tritonserver"
_ENVIRONMENT = {
    **os.environ,
    "PYTHON": sys.executable,
    "TORCH_SITE": str(Path(torch.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}


def install_triton() -> None:
    """Install Triton where it is not yet; skip the test where that fails, unless the environment says CI=true."""
    ended = subprocess.run([_TOOL, "--install"], env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    if ended.returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Triton here: {ended.stderr}")


class TritonServer:
    """`tritonserver` with the Python backend on a free port, serving one model repository; `folder` keeps its log."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"127.0.0.1:{port}"
        self._regions = f"limner_test_triton_{port}_"
        self._log = folder / "triton.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until all models are ready."""
        host, port = self.url.split(":")
        with self._log.open("ab") as log:
            self._process = self._spawn(
                log,
                f"--model-repository={self.repository}",
                "--model-config-name=python",
                "--exit-on-error=false",
                "--strict-readiness=false",
                "--disable-auto-complete-config",
                f"--backend-config=python,shm-region-prefix-name={self._regions}",
                f"--grpc-address={host}",
                f"--grpc-port={port}",
                "--allow-http=false",
                "--allow-metrics=false",
            )
        with grpc.insecure_channel(self.url, [("grpc.max_reconnect_backoff_ms", 200)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._ready(stub):
                assert self.running, self._log.read_text()
                time.sleep(0.1)

    def kill(self) -> None:
        """End all its processes without a word, and clear away the shared memory that it could not."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=10)
        for region in Path("/dev/shm").glob(f"{self._regions}*"):  # noqa: S108 - where POSIX shared memory is
            region.unlink()

    def freeze(self) -> None:
        """Stop it in mid-work, as a machine that swaps or a debugger would."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _spawn(self, log: IO[bytes], *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([_TOOL, *arguments], env=_ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            os.killpg(self._process.pid, number)

    @staticmethod
    def _ready(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> bool:
        try:
            return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1).ready)
        except grpc.RpcError:
            return False
