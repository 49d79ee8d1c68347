"""The manifests against the code: every setting, port, probe and metric in them exists; and pods are confined."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from limner.cli.main import app
from limner_server.rpc.health import LIVE
from limner_server.settings import Settings
from limner_server.training.job import TrainingRequest
from tests.certificates import make_certificate
from tests.deploy.manifests import (
    DEPLOY,
    K8S,
    OVERLAYS,
    ROOT,
    Object,
    all_of,
    containers,
    environment,
    kustomize,
    overlay,
    templates,
    the,
)
from tests.repository.test_docs import parse

LIBPQ = {"PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT"}
SECRETS = {"limner-tls", "limner-client-tls", "limner-postgres"}
"""What deploy/README.md says that has to be made by hand, or by cert-manager."""

SERVERS = [name for name in OVERLAYS if not name.endswith("-job")]
UID = 10001


def server(objects: list[Object]) -> Object:
    """The container of the server."""
    (found,) = the(objects, "Deployment", "limner")["spec"]["template"]["spec"]["containers"]
    assert found["name"] == "limner"
    return found


@pytest.mark.parametrize("name", SERVERS)
def test_every_setting_is_one_and_has_a_value_that_is_allowed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = environment(overlay(name), server(overlay(name)))
    found["LIMNER_THREADS"] = "2"  # what the kubelet makes of resourceFieldRef
    ours = {key.removeprefix("LIMNER_").lower() for key in found if key.startswith("LIMNER_")}
    assert ours <= set(Settings.model_fields)
    assert set(found) - LIBPQ == {f"LIMNER_{setting.upper()}" for setting in ours}
    # Files are looked into: those of the pod, as they are here.
    certificate, key = make_certificate(tmp_path, "limner")
    files = {
        "TLS_CERTIFICATE": certificate,
        "TLS_KEY": key,
        "TLS_CLIENT_CA": certificate,
        "ACCESS": K8S / "base/access.yaml",
    }
    found |= {f"LIMNER_{name}": str(path) for name, path in files.items()}
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert (settings.host, settings.port, settings.threads) == ("0.0.0.0", 8500, 2)  # noqa: S104


@pytest.mark.parametrize("name", SERVERS)
def test_ports_and_probes_are_the_servers(name: str) -> None:
    objects = overlay(name)
    container = server(objects)
    settings = environment(objects, container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "grpc": int(settings["LIMNER_PORT"]),
        "health": int(settings["LIMNER_HEALTH_PORT"]),
        "metrics": int(settings["LIMNER_METRICS_PORT"]),
    }
    (exposed,) = re.findall(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert sorted(map(int, exposed.split())) == sorted(ports.values())
    probes = {kind: container[f"{kind}Probe"]["grpc"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {ports["health"]}
    assert {kind: probe.get("service", "") for kind, probe in probes.items()} == {
        "startup": LIVE,
        "liveness": LIVE,
        "readiness": "",
    }
    for service in all_of(objects, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    for policy in all_of(objects, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= set(ports)
    (monitor,) = all_of(objects, "ServiceMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == {"metrics"}


@pytest.mark.parametrize("name", SERVERS)
def test_the_kubelet_waits_for_the_drain(name: str) -> None:
    objects = overlay(name)
    drain = float(environment(objects, server(objects))["LIMNER_DRAIN_S"])
    spec = the(objects, "Deployment", "limner")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == drain + 25


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_selects_pods_selects_some(name: str) -> None:
    objects = overlay(name)
    labels = [template["metadata"]["labels"] for template in templates(objects)]

    def selects(selector: dict[str, str]) -> bool:
        return any(selector.items() <= one.items() for one in labels)

    for service in all_of(objects, "Service"):
        assert selects(service["spec"]["selector"]), service["metadata"]["name"]
    for budget in all_of(objects, "PodDisruptionBudget"):
        assert selects(budget["spec"]["selector"]["matchLabels"])
    for policy in all_of(objects, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        # Callers of a server are elsewhere, such as in the overlay score-job.
        assert selects(selector) or selector == {"limner-client": "true"}, policy["metadata"]["name"]
    for monitor in all_of(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        matched = [one for one in all_of(objects, "Service") if wanted <= one["metadata"]["labels"].items()]
        assert [one["metadata"]["name"] for one in matched] == ["limner"], "each pod is scraped once"
    for scaled in all_of(objects, "ScaledObject"):
        assert the(objects, "Deployment", scaled["spec"]["scaleTargetRef"]["name"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_are_confined(name: str) -> None:
    for template in templates(overlay(name)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (UID, UID, UID)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in containers(overlay(name)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert resources["requests"]["cpu"]
        assert "cpu" not in resources["limits"]


def test_the_namespace_refuses_pods_that_are_not() -> None:
    namespace = the(overlay("cpu"), "Namespace", "limner")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_pod_writes_and_reads_is_mounted(name: str) -> None:
    objects = overlay(name)
    for template in templates(objects):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for container in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {mount["name"] for mount in mounts.values()} <= set(volumes)
            assert "emptyDir" in volumes[mounts["/tmp"]["name"]]  # noqa: S108
            for key, value in environment(objects, container).items():
                if value.startswith("/"):
                    assert any(value.startswith(f"{path}/") for path in mounts), f"{key}={value}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_referred_to_is_there(name: str) -> None:
    objects = overlay(name)
    claims = {claim["metadata"]["name"] for claim in all_of(objects, "PersistentVolumeClaim")}
    if name == "train-job":  # it goes beside that overlay
        claims |= {claim["metadata"]["name"] for claim in all_of(overlay("postgres"), "PersistentVolumeClaim")}
    configs = {config["metadata"]["name"] for config in all_of(objects, "ConfigMap")}
    text = json.dumps(list(templates(objects)))
    assert set(re.findall(r'"claimName": "([^"]+)"', text)) <= claims
    secrets = re.findall(r'"secretName": "([^"]+)"|"secretKeyRef": \{[^}]*"name": "([^"]+)"', text)
    assert {one or other for one, other in secrets} <= SECRETS
    found = re.findall(r'"config[mM]ap(?:Ref)?": \{[^}]*"name": "([^"]+)"', text)
    assert found
    assert set(found) <= configs


def test_cert_manager_makes_the_secrets_of_certificates() -> None:
    certificates = all_of(kustomize(K8S / "components/cert-manager"), "Certificate")
    assert {one["spec"]["secretName"] for one in certificates} - {"limner-ca"} == SECRETS - {"limner-postgres"}
    principals = yaml.safe_load((K8S / "base/access.yaml").read_text())["principals"]
    (client,) = [one for one in certificates if one["spec"]["secretName"] == "limner-client-tls"]
    assert "score" in principals[f"certificate:{client['spec']['commonName']}"]["roles"]
    (of_server,) = [one for one in certificates if one["spec"]["secretName"] == "limner-tls"]
    services = {one["metadata"]["name"] for one in all_of(overlay("postgres"), "Service")}
    assert services == {name for name in of_server["spec"]["dnsNames"] if "." not in name}


def test_the_address_of_a_scoring_is_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = [one for one in all_of(overlay("score-job"), "Job") if one["metadata"]["name"] == "limner-score"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found = environment(overlay("score-job"), container)
    known = {variable for command in _commands() for parameter in command.params for variable in _variables(parameter)}
    assert {key for key in found if key.startswith("LIMNER_")} <= known
    host, port = re.fullmatch(r"dns:///(.*):(\d+)", found["LIMNER_SERVER"]).groups()  # type: ignore[union-attr]
    service = the(overlay("cpu"), "Service", host)
    assert service["spec"]["clusterIP"] == "None"
    assert int(port) in {one["port"] for one in service["spec"]["ports"]}
    assert int(found["PARTS"]) == job["spec"]["completions"]
    found["PART"] = "3"
    words = [re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], word) for word in container["args"]]
    assert parse(words) == (0, ["score"])


def test_the_request_of_a_training_is_one_for_the_servers_state() -> None:
    objects = overlay("train-job")
    train = the(objects, "ConfigMap", "limner-train")["data"]
    request = TrainingRequest.model_validate_json(train["request.json"])
    settings = environment(overlay("postgres"), server(overlay("postgres")))
    assert str(request.data_dir) == settings["LIMNER_DATA_DIR"]
    assert str(request.model_repository) == settings["LIMNER_MODEL_REPOSITORY"]
    assert request.database_url == settings["LIMNER_DATABASE_URL"]
    assert train["FOLDER"] == f"{request.data_dir}/jobs/{request.id}"


def test_one_server_ends_before_the_next_begins_and_several_roll() -> None:
    def strategy(name: str) -> tuple[str, list[str]]:
        (claim,) = all_of(overlay(name), "PersistentVolumeClaim")
        return the(overlay(name), "Deployment", "limner")["spec"]["strategy"]["type"], claim["spec"]["accessModes"]

    assert {name: strategy(name) for name in SERVERS} == {
        "cpu": ("Recreate", ["ReadWriteOnce"]),
        "gpu": ("Recreate", ["ReadWriteOnce"]),
        "triton": ("Recreate", ["ReadWriteOnce"]),
        "postgres": ("RollingUpdate", ["ReadWriteMany"]),
    }
    assert [name for name in SERVERS if all_of(overlay(name), "ScaledObject")] == ["postgres"]
    for name in SERVERS:
        assert "replicas" not in the(overlay(name), "Deployment", "limner")["spec"], "the autoscaler's to say"


def test_the_autoscaler_asks_for_a_metric_that_is_there() -> None:
    (scaled,) = all_of(overlay("postgres"), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    metrics = set(re.findall(r"limner_\w+", trigger["metadata"]["query"]))
    sources = "".join(path.read_text() for path in (ROOT / "server/limner_server/telemetry").rglob("*.py"))
    assert metrics
    assert all(f'"{metric}"' in sources for metric in metrics)


def test_a_changed_setting_is_a_rollout(tmp_path: Path) -> None:
    def change(file: str, old: str, new: str) -> None:
        path = tmp_path / "k8s/base" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def pods() -> Any:
        return the(kustomize(tmp_path / "k8s/overlays/cpu"), "Deployment", "limner")["spec"]["template"]

    shutil.copytree(K8S, tmp_path / "k8s")
    before = pods()
    change("access.yaml", "[read, score]", "[read]")
    assert pods() == before, "the server reads it again by itself"
    change("settings.env", "LIMNER_DRAIN_S=20", "LIMNER_DRAIN_S=30")
    assert pods() != before


def test_the_readme_names_all_there_is() -> None:
    text = (DEPLOY / "README.md").read_text()
    components = [path.parent.name for path in K8S.glob("components/*/kustomization.yaml")]
    assert [name for name in (*OVERLAYS, *components) if f"\n| `{name}` |" not in text] == []
    assert [name for name in SECRETS if f"`{name}`" not in text] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (DEPLOY / link).exists()] == []


def test_components_go_together(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s/overlays/mine"
    mine.mkdir()
    components = ["postgres", "gpu", "triton", "autoscaling", "monitoring", "cert-manager"]
    content = {"namespace": "limner", "resources": ["../../base"]}
    (mine / "kustomization.yaml").write_text(
        yaml.safe_dump({**content, "components": [f"../../components/{name}" for name in components]})
    )
    objects = kustomize(mine)
    found = environment(objects, server(objects))
    assert (found["LIMNER_DEVICE"], found["LIMNER_ENGINE"]) == ("cuda", "triton")
    assert found["LIMNER_DATABASE_URL"].startswith("postgresql://")
    assert server(objects)["image"] == "limner:cuda"
    (triton,) = the(objects, "Deployment", "limner")["spec"]["template"]["spec"]["initContainers"]
    assert (triton["name"], triton["restartPolicy"]) == ("triton", "Always")
    names = [volume["name"] for volume in the(objects, "Deployment", "limner")["spec"]["template"]["spec"]["volumes"]]
    assert len(names) == len(set(names))


def test_triton_is_told_what_limner_asks_of_it() -> None:
    objects = overlay("triton")
    (triton,) = the(objects, "Deployment", "limner")["spec"]["template"]["spec"]["initContainers"]
    options = dict(option.removeprefix("--").split("=") for option in triton["args"])
    settings = environment(objects, server(objects))
    assert settings["LIMNER_TRITON_URL"] == f"{options['grpc-address']}:{options['grpc-port']}"
    (models,) = [mount for mount in triton["volumeMounts"] if mount["name"] == "state"]
    (state,) = [mount for mount in server(objects)["volumeMounts"] if mount["name"] == "state"]
    assert f"{state['mountPath']}/{models['subPath']}" == settings["LIMNER_MODEL_REPOSITORY"]
    assert options["model-repository"] == models["mountPath"]


def _commands(group: Any = None) -> list[Any]:
    group = group or typer.main.get_command(app)
    inner = getattr(group, "commands", {}).values()
    return [group, *(command for one in inner for command in _commands(one))]


def _variables(parameter: Any) -> list[str]:
    named = getattr(parameter, "envvar", None) or []
    return [named] if isinstance(named, str) else list(named)
