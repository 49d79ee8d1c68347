"""The manifests as Kubernetes would get them: rendered by a real kubectl, one dictionary for each object."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
K8S = DEPLOY / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))

Object = dict[str, Any]


def kustomize(folder: Path) -> list[Object]:
    """Render one folder."""
    command = [ROOT / "tools/kubectl", "kustomize", folder]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "deprecated" not in ended.stderr, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


@cache
def overlay(name: str) -> list[Object]:
    """Render one overlay; not to be changed by the caller."""
    return kustomize(K8S / "overlays" / name)


def all_of(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [one for one in objects if one["kind"] == kind]


def the(objects: list[Object], kind: str, name: str) -> Object:
    """The one of this kind and name, whose name may end in a generator's digest."""
    pattern = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
    found = [one for one in all_of(objects, kind) if pattern.fullmatch(one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects are {kind} {name}"
    return found[0]


def templates(objects: list[Object]) -> Iterator[Object]:
    """Every pod template, whoever makes pods of it."""
    for one in objects:
        spec = one.get("spec", {})
        if "template" in spec:
            yield spec["template"]
        for replicas in spec.get("pytorchReplicaSpecs", {}).values():
            yield replicas["template"]


def containers(objects: list[Object]) -> Iterator[Object]:
    """Every container, those that start before the others too."""
    for template in templates(objects):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """The variables of a container; empty where the value comes from elsewhere than the manifests."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        # A file of a ConfigMap is no variable.
        found |= {key: value for key, value in the(objects, "ConfigMap", name)["data"].items() if "." not in key}
    return found | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
