"""The training of the overlay `train-job`: its own command on two nodes, here two processes of one machine."""

import os
import subprocess
import sysconfig
from pathlib import Path

from limner.imaging.grid import Grid
from limner_server.networks.repository import ModelRepository
from limner_server.training.config import TrainingConfig
from limner_server.training.job import TrainingRequest
from tests.deploy.manifests import Object, overlay, the
from tests.gateway.orthanc import free_port
from tests.server.training.cohorts import stored

SMALL = TrainingConfig(grid=Grid(fov_mm=160, size=32), folds=2, epochs=1, batch_size=16, halves=False)
ROLES = ("Master", "Worker")


def test_two_nodes_train_one_model(tmp_path: Path) -> None:
    job = the(overlay("train-job"), "PyTorchJob", "limner-train")["spec"]
    config = the(overlay("train-job"), "ConfigMap", "limner-train")["data"]
    given = TrainingRequest.model_validate_json(config["request.json"])
    request = given.model_copy(
        update={
            "cohort": "tiny",
            "config": SMALL,
            "database_url": stored(tmp_path / "data", subjects=8),
            "data_dir": tmp_path / "data",
            "model_repository": tmp_path / "models",
            "device": "cpu",
            "threads": 1,
        }
    )
    (tmp_path / "request.json").write_text(request.model_dump_json())
    # What the Training Operator gives the container `pytorch` of each node.
    operator = {
        "PET_NNODES": str(len(ROLES)),
        "PET_NPROC_PER_NODE": job["nprocPerNode"],
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(free_port()),
    }
    nodes = [
        _start(
            job["pytorchReplicaSpecs"][role]["template"],
            tmp_path,
            {**operator, "PET_NODE_RANK": str(rank), "HOSTNAME": role.lower()},
        )
        for rank, role in enumerate(ROLES)
    ]
    told = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(told)
    assert '"result"' in told[0]
    assert ModelRepository(request.model_repository).published(request.model, request.id) == 1
    left = sorted(path.name for path in (tmp_path / "job").iterdir() if path.name.startswith("request"))
    assert left == ["request.json"]


def _start(template: Object, folder: Path, variables: dict[str, str]) -> subprocess.Popen[str]:
    (container,) = template["spec"]["containers"]
    tini, rest = container["command"][:2], container["command"][2:]
    assert tini == ["/usr/bin/tini", "--"]
    (script,) = container["args"]
    assert "/etc/limner/train/request.json" in script
    return subprocess.Popen(
        [*rest, script.replace("/etc/limner/train", str(folder))],
        env={
            **os.environ,
            **variables,
            "FOLDER": str(folder / "job"),
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
