"""What the manifests say is what Kubernetes and the operators understand: every field, by their schemas."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.cert_manager.v1 import Certificate, Issuer
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

from tests.deploy.manifests import DEPLOY, K8S, OVERLAYS, Object, all_of, environment, kustomize, overlay

# The oldest one with all that is used (sidecars and failure policies by index), and the newest one known here.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

CUSTOM: dict[str, Any] = {
    "cert-manager.io/v1 Certificate": Certificate,
    "cert-manager.io/v1 Issuer": Issuer,
    "keda.sh/v1alpha1 ScaledObject": ScaledObject,
    "monitoring.coreos.com/v1 ServiceMonitor": ServiceMonitor,
}
"""Models generated from each operator's own definitions."""

PYTORCHJOB = {
    "nprocPerNode": str,
    "runPolicy": {"cleanPodPolicy": str, "backoffLimit": int, "ttlSecondsAfterFinished": int},
    "pytorchReplicaSpecs": {
        role: {"replicas": int, "restartPolicy": str, "template": dict} for role in ("Master", "Worker")
    },
}
"""The fields that are used of kubeflow.org/v1's PyTorchJobSpec, whose schema is in no package that could be had."""

EVERYTHING = [one for name in OVERLAYS for one in overlay(name)]


def test_the_overlays_that_are_promised_are_there() -> None:
    assert {"cpu", "gpu", "triton", "postgres", "score-job", "train-job"} <= set(OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_own_kinds(name: str, version: str) -> None:
    checked = 0
    for one in overlay(name):
        if _kind(one) not in CUSTOM and one["kind"] != "PyTorchJob":
            kubernetes_validate.validate(one, version, strict=True)
            checked += 1
    assert checked


def test_the_pod_for_files_is_one_of_the_server() -> None:
    pod = yaml.safe_load((K8S / "files-pod.yaml").read_text())
    (deployment,) = all_of(overlay("cpu"), "Deployment")
    server = deployment["spec"]["template"]["spec"]
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=True)
    for field in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
        assert pod["spec"][field] == server[field]
    (own,), (container,) = pod["spec"]["containers"], server["containers"]
    assert own["securityContext"] == container["securityContext"]
    assert own["image"] == container["image"]
    settings = environment(overlay("cpu"), container)
    assert {entry["name"]: entry["value"] for entry in own["env"]}.items() <= settings.items()
    assert {"name": "state", "mountPath": "/var/lib/limner"} in own["volumeMounts"]


@pytest.mark.parametrize("kind", CUSTOM)
def test_kinds_of_operators(kind: str) -> None:
    certificates = [one for one in kustomize(K8S / "components/cert-manager") if _kind(one) == kind]
    found = certificates + [one for one in EVERYTHING if _kind(one) == kind]
    assert found
    for one in found:
        model = CUSTOM[kind].model_validate(one)
        # A field that the model does not know is dropped on the way through it.
        assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == one


def test_the_rules_as_an_object_of_the_operator(tmp_path: Path) -> None:
    (block,) = re.findall(
        r'^```sh title="rules"\n(.*?)^```$', (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "deploy").symlink_to(DEPLOY)
    command = ["bash", "-euo", "pipefail", "-c", block]
    subprocess.run(command, cwd=tmp_path, check=True)
    rule = yaml.safe_load((tmp_path / "rules.yaml").read_text())
    assert PrometheusRule.model_validate(rule).model_dump(by_alias=True, exclude_unset=True, mode="json") == rule
    jobs = set(re.findall(r'job="([^"]+)"', (tmp_path / "rules.yaml").read_text()))
    services = {service["metadata"]["name"] for service in all_of(overlay("cpu"), "Service")}
    assert jobs <= services, "a ServiceMonitor's job is its Service"
    assert jobs


def test_a_field_that_is_none_is_found() -> None:
    (scaled,) = all_of(overlay("postgres"), "ScaledObject")
    wrong = {**scaled, "spec": {**scaled["spec"], "minReplicas": 2}}
    assert ScaledObject.model_validate(wrong).model_dump(by_alias=True, exclude_unset=True, mode="json") != wrong
    (deployment,) = all_of(overlay("cpu"), "Deployment")
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_training_by_its_operator() -> None:
    (job,) = all_of(overlay("train-job"), "PyTorchJob")
    assert job["apiVersion"] == "kubeflow.org/v1"
    _check(job["spec"], PYTORCHJOB, "spec")
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        # The operator takes the container of this name for the one that trains.
        assert [container["name"] for container in replicas["template"]["spec"]["containers"]] == ["pytorch"]
        pod = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "node"},
            "template": replicas["template"],
        }
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)


def _kind(one: Object) -> str:
    return f"{one['apiVersion']} {one['kind']}"


def _check(value: Any, schema: Any, place: str) -> None:
    if isinstance(schema, dict):
        assert set(value) <= set(schema), place
        for key, inner in value.items():
            _check(inner, schema[key], f"{place}.{key}")
    else:
        assert isinstance(value, schema), place
