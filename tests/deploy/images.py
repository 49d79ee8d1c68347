"""Images of deploy/Dockerfile, really built: by buildah, on a base that debootstrap makes.

torch and what it brings are 5 GB. So what an image depends on is lent to it by this environment: it lies where pip
looks, which finds it there already. Every instruction runs, and the images lack those packages alone. With
LIMNER_IMAGES=whole (`make images`) nothing is lent, and they are what a registry would get.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement

from tests.deploy.manifests import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "Dockerfile"

WHOLE = os.environ.get("LIMNER_IMAGES") == "whole"
THERE = os.geteuid() == 0 and all(map(shutil.which, ("buildah", "debootstrap", "ip", "nsenter", "setpriv")))
WANTED = THERE or bool(os.environ.get("CI"))
WHY_NOT = "needs root, buildah, debootstrap and iproute2"

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "limner-images"
_BASE = "localhost/limner-test-base"
_PACKAGES = "python3,python3-venv,ca-certificates"
_SITE = Path(sysconfig.get_path("purelib"))


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes
    ----------
    config
        What it says of itself (OCI image configuration).
    root
        The root folder of a container of it.
    lent
        What has to be mounted there: where it is, and where it goes.
    """

    config: Mapping[str, Any]
    root: Path
    lent: tuple[tuple[Path, Path], ...]


class Builder:
    """Builds images, in a storage of its own that goes with it."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="limner-images-")
        _CACHE.mkdir(parents=True, exist_ok=True)
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        base = _CACHE / f"{release}-{_PACKAGES}.tar"
        if not base.exists():
            _make_base(base, release)
        container = self._run("from", "scratch").strip()
        self._run("add", "--quiet", container, str(base), "/")
        self._run("commit", "--quiet", "--rm", container, _BASE)

    def build(self, target: str) -> Image:
        """Build a target of the Dockerfile."""
        loan = () if WHOLE else tuple(lent(target))
        name = f"localhost/limner-test:{target}"
        self._run(
            *("build-using-dockerfile", "--isolation=chroot", "--layers", f"--file={DOCKERFILE}"),
            *(f"--target={target}", f"--tag={name}", f"--build-arg=BASE={_BASE}"),
            "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
            *(f"--volume={source}:{place}:ro" for source, place in loan),
            str(ROOT),
        )
        config = json.loads(self._run("inspect", "--type=image", name))["OCIv1"]["config"]
        return Image(config, Path(self._run("mount", self._run("from", name).strip()).strip()), loan)

    def close(self) -> None:
        """Drop everything."""
        self._run("rm", "--all")
        self._folder.cleanup()

    def _run(self, *arguments: str) -> str:
        folders = [f"--root={self._folder.name}/storage", f"--runroot={self._folder.name}/run"]
        command = ["buildah", *folders, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


def _make_base(tar: Path, release: str) -> None:
    """Debian as small as it comes, with Python: what the Dockerfile's default base is by other means."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Release: {release}"]
    mirror = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    with TemporaryDirectory(prefix="limner-base-") as root:
        for command in (
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, f"{root}/base", mirror],
            ["tar", f"--directory={root}/base", f"--file={root}/base.tar", "--create", "."],
        ):
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        shutil.move(f"{root}/base.tar", tar)


def lent(target: str) -> Iterator[tuple[Path, Path]]:
    """What of this environment lies in a target's while it is built and run: where it is, and where it goes there."""
    # Debian's Python is taken to be of this one's version; where it is not, pip does not find them and gets its own.
    text = DOCKERFILE.read_text()
    place = Path(f"/opt/limner/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
    (stage,) = re.findall(rf"^FROM \w+ AS {target}$\n(?:[^F].*\n)*?COPY --from=(\S+)", text, re.MULTILINE)
    (extras,) = re.findall(rf"^FROM build AS {stage}$.*?'\.\[(.*?)\]'", text, re.DOTALL | re.MULTILINE)
    tops = {file.parts[0] for one in _wanted(f"limner[{extras}]") for file in one.files or () if file.suffix != ".pth"}
    return ((_SITE / top, place / top) for top in sorted(tops) if top not in ("..", "__pycache__"))


def _wanted(requirement: str) -> list[Distribution]:
    """The distributions that a requirement brings along, itself left out."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()

    def follow(wanted: Requirement) -> None:
        for extra in ("", *sorted(wanted.extras)):
            if (wanted.name, extra) in asked:
                continue
            asked.add((wanted.name, extra))
            found[wanted.name] = distribution(wanted.name)
            for line in found[wanted.name].requires or ():
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    follow(inner)

    first = Requirement(requirement)
    follow(first)
    del found[first.name]
    return list(found.values())
