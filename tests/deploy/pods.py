"""Pods of the manifests, as far as they go without a cluster: commands, variables and mounts in an image's root."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.images import Image
from tests.deploy.manifests import Object, environment

_SCRIPT = Path(__file__).with_name("pod.sh")

Mounts = Mapping[str, Path]
"""What lies at each path of the container."""


def command(
    image: Image, objects: list[Object], container: Object, mounts: Mounts, known: Mapping[str, str]
) -> list[str]:
    """The command line of a container: what it runs, with its variables, among its mounts, confined as it is.

    `known` has the values that come from elsewhere than the manifests.
    """
    variables = dict(one.split("=", 1) for one in image.config["Env"])
    variables |= environment(objects, container) | known
    expanded = [_expand(word, variables) for word in (*container.get("command", ()), *container.get("args", ()))]
    entry = [] if "command" in container else image.config["Entrypoint"]
    read_only = {mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")}
    wanted = {mount["mountPath"] for mount in container["volumeMounts"]} - {"/tmp", "/dev/shm"}  # noqa: S108
    assert wanted <= set(mounts)
    places = [f"{source}:{place}{':ro' if place in read_only else ''}" for place, source in mounts.items()]
    lent = [f"{source}:{place}:ro" for source, place in image.lent]
    words = [f"{name}={value}" for name, value in variables.items()]
    return [str(_SCRIPT), str(image.root), *places, *lent, "--", *words, *entry, *expanded]


class Pod:
    """A process that goes on, in a network of its own."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        isolated = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        with log.open("wb") as file:
            self._process = subprocess.Popen([*isolated, *command], stdout=file, stderr=file)

    def beside(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of its own on this pod's network, to its end."""
        return self.near(["unshare", "--mount", "--pid", "--fork", *command])

    def near(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine on this pod's network, to its end."""
        entered = ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *command]
        return subprocess.run(entered, capture_output=True, text=True, check=False)

    def wait_for(self, words: str) -> None:
        """Wait until its log has these words."""
        ends = time.monotonic() + 120
        while words not in self.log():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < ends, self.log()
            time.sleep(0.1)

    def terminate(self) -> int:
        """End it as the kubelet does, by SIGTERM to its first process, and return the exit status."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """End it at once, and all that is in it."""
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """Everything it has printed."""
        return self._log.read_text()


@contextmanager
def running(command: list[str], log: Path) -> Iterator[Pod]:
    """Start a pod, and see that it is gone in the end."""
    pod = Pod(command, log)
    try:
        yield pod
    finally:
        pod.kill()


def _expand(word: str, variables: Mapping[str, str]) -> str:
    """Put variables in, as Kubernetes does."""
    for name, value in variables.items():
        word = word.replace(f"$({name})", value)
    return word
