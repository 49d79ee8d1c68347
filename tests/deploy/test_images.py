"""The images, built for real, and the pods of the manifests run out of them: a server, a scoring in parts, a merge."""

import csv
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.models import publish_untrained
from tests.deploy.images import WANTED, WHY_NOT, Builder, Image
from tests.deploy.manifests import DEPLOY, Object, all_of, overlay, the
from tests.deploy.pods import Mounts, Pod, command, running
from tests.gateway.authority import Authority

pytestmark = [pytest.mark.skipif(not WANTED, reason=WHY_NOT), pytest.mark.timeout(1800)]

UID = 10001
TARGETS = re.findall(
    r"^FROM (?:runtime|server) AS (cpu|cuda|client)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
)

HEALTH = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
for service in sys.argv[2:]:
    with grpc.insecure_channel(sys.argv[1]) as channel:
        print(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status)
"""


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    builder = Builder()
    try:
        yield {target: builder.build(target) for target in TARGETS}
    finally:
        builder.close()


def lay(folder: Path, files: dict[str, Path]) -> Path:
    """Copy files into a folder as Kubernetes mounts a Secret or a ConfigMap: for the pod's group to read."""
    folder.mkdir()
    for name, source in files.items():
        shutil.copy(source, folder / name)
        shutil.chown(folder / name, group=UID)
        (folder / name).chmod(0o440)
    return folder


def owned(folder: Path) -> Path:
    """A folder that the pods may write, as one of a volume with their fsGroup."""
    folder.mkdir(exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)
    return folder


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory, phantom: Path) -> Mounts:
    """Volumes for all pods: a model, a phantom to score, certificates, the access file."""
    folder = tmp_path_factory.mktemp("volumes")
    authority = Authority(folder / "authority")
    publish_untrained(folder / "state" / "models", "cervix", size=32)
    services = [service["metadata"]["name"] for service in all_of(overlay("cpu"), "Service")]
    access = folder / "access.yaml"
    access.write_text(the(overlay("cpu"), "ConfigMap", "limner-access")["data"]["access.yaml"])
    (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(services)}\n")
    shutil.copytree(phantom, folder / "images")

    def tls(name: str, hosts: str) -> Path:
        certificate, key = authority.sign(name, hosts)
        return lay(folder / name, {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.certificate})

    return {
        "/etc/hosts": folder / "hosts",
        "/etc/limner/tls": tls("limner", ",".join(f"DNS:{name}" for name in services)),
        "client": tls("limner-client", "DNS:client"),
        "admin": tls("limner-admin", "DNS:admin"),
        "/etc/limner/access": lay(folder / "access", {"access.yaml": access}),
        "/var/lib/limner": owned(folder / "state"),
        "/images": owned(folder / "images"),
        "/scores": owned(folder / "scores"),
    }


SERVER_PLACES = ("/etc/hosts", "/etc/limner/tls", "/etc/limner/access", "/var/lib/limner")


@pytest.fixture(scope="module")
def pod(images: dict[str, Image], mounts: Mounts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The server of the overlay `cpu`."""
    (container,) = the(overlay("cpu"), "Deployment", "limner")["spec"]["template"]["spec"]["containers"]
    started = command(
        images["cpu"],
        overlay("cpu"),
        container,
        {place: mounts[place] for place in SERVER_PLACES},
        {"LIMNER_THREADS": "2"},
    )
    with running(started, tmp_path_factory.mktemp("pod") / "log") as server:
        server.wait_for("listening on 0.0.0.0:8500")
        yield server


def client(
    image: Image, mounts: Mounts, job: str, other: Object | None = None, who: str = "client", **known: str
) -> list[str]:
    """The command line of a Job's container, but for `other` fields."""
    objects = overlay("score-job")
    (container,) = the(objects, "Job", job)["spec"]["template"]["spec"]["containers"]
    container = {**container, **(other or {})}
    places = {"/etc/hosts": mounts["/etc/hosts"], "/etc/limner/tls": mounts[who]}
    places |= {place: mounts[place] for place in ("/images", "/scores")}
    return command(image, objects, container, places, known)


def test_an_image_holds_what_it_needs_and_no_more(images: dict[str, Image]) -> None:
    for target, image in images.items():
        inside = {path.name for path in (image.root / "opt/limner/bin").iterdir()}
        assert "pip" not in inside
        assert ("limner-server" in inside) == (target != "client")
        assert not (image.root / "opt/pip").exists()
        assert not (image.root / "src").exists()
        assert not list((image.root / "root").glob(".cache"))
        assert not list((image.root / "var/lib/apt/lists").iterdir())
        assert not (image.root / "usr/bin/gcc").exists()


def test_an_image_says_what_it_is(images: dict[str, Image]) -> None:
    for target, image in images.items():
        assert image.config["User"] == f"{UID}:{UID}"
        labels = image.config["Labels"]
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert "not for diagnostic use" in labels["org.opencontainers.image.description"]
        program = "limner" if target == "client" else "limner-server"
        assert image.config["Entrypoint"] == ["/usr/bin/tini", "--", program]


def test_the_probes_of_the_pod_are_answered(pod: Pod) -> None:
    (container,) = the(overlay("cpu"), "Deployment", "limner")["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"]["grpc"] for kind in ("readiness", "liveness", "startup")]
    services = [probe.get("service", "") for probe in probes]
    asked = pod.near([sys.executable, "-c", HEALTH, f"127.0.0.1:{probes[0]['port']}", *services])
    assert asked.stdout.split() == ["1"] * len(services), asked.stderr


def test_the_metrics_are_where_they_are_looked_for(pod: Pod) -> None:
    (monitor,) = all_of(overlay("cpu"), "ServiceMonitor")
    path = monitor["spec"]["endpoints"][0]["path"]
    code = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8502{path}').read().decode())"
    asked = pod.near([sys.executable, "-c", code])
    assert "limner_build_info" in asked.stdout, asked.stderr


def test_a_pod_is_confined(images: dict[str, Image], mounts: Mounts, pod: Pod) -> None:
    # The folder is the user's own, in the image: nothing but the read-only root keeps it from writing there.
    code = "touch /tmp/mine; id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /var/lib/limner/mine"
    shell = {"command": ["/bin/sh", "-c", code], "args": []}
    told = pod.beside(client(images["client"], mounts, "limner-score", shell))
    user, *status = told.stdout.splitlines()
    assert user == str(UID), told.stderr
    assert [line.split(":")[1].strip() for line in status] == ["0000000000000000", "1"]
    assert "Read-only file system" in told.stderr


def test_a_set_is_scored_in_parts_and_merged(images: dict[str, Image], mounts: Mounts, pod: Pod) -> None:
    def run(job: str, *words: str, who: str = "client", **known: str) -> None:
        other = {"args": list(words)} if words else None
        ended = pod.beside(client(images["client"], mounts, job, other, who, **known))
        assert ended.returncode == 0, ended.stderr + pod.log()

    run("limner-score", "models", "promote", "cervix:1", who="admin")
    run("limner-score", "score", "cervix", "/images", "--out=/scores/list", "--every-slice", "--dry-run")
    shutil.copy(mounts["/scores"] / "list/items.csv", mounts["/images"])
    for part in range(2):
        run("limner-score", PARTS="2", PART=str(part))
    run("limner-merge")
    with (mounts["/scores"] / "all/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(mounts["/images"].rglob("*.dcm")))
    assert {(row["model"], row["error"]) for row in rows} == {("cervix", "")}


def test_a_pod_that_is_told_to_end_drains_and_ends_well(pod: Pod) -> None:
    assert pod.terminate() == 0
