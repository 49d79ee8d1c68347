"""The standard services that other tools rely on, health and reflection; and how the server starts and stops."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from benchmarks.models import publish_untrained
from limner.v1 import common_pb2, model_pb2, model_pb2_grpc
from limner_server.rpc.health import SERVICES as SERVED
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

SERVICES = {"Cohort", "Training", "Inference", "Feature", "Simulation", "Model"}
HEALTH = health_pb2.HealthCheckResponse


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


class Watch:
    """Reads a watch of health as it comes: gRPC may drop what was not read when the connection ends."""

    def __init__(self, call: Iterator[health_pb2.HealthCheckResponse]) -> None:
        self.first = threading.Event()
        self._seen: list[int] = []
        self._reader = threading.Thread(target=self._read, args=(call,))
        self._reader.start()

    def to_its_end(self) -> list[int]:
        """Every status, once the watch has ended."""
        self._reader.join(60)
        return self._seen

    def _read(self, call: Iterator[health_pb2.HealthCheckResponse]) -> None:
        for reply in call:
            self._seen.append(reply.status)
            self.first.set()


@pytest.mark.parametrize("service", ["", *(f"limner.v1.{name}Service" for name in sorted(SERVICES))])
def test_every_service_is_serving(server: LiveServer, service: str) -> None:
    assert health(server.address, service) == HEALTH.SERVING


def test_an_unknown_service_has_no_health(server: LiveServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(server.address, "limner.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_a_stranger_the_whole_contract(server: LiveServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {f"limner.v1.{name}Service" for name in SERVICES} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("limner.v1.InferenceService")
        predict = service.methods_by_name["Predict"]
        assert predict.input_type.fields_by_name["images"].message_type.full_name == "limner.v1.Image"


def test_stopping_ends_well_and_says_not_serving_first(tmp_path: Path) -> None:
    with LiveServer(tmp_path, drain_s=1) as live:
        with grpc.insecure_channel(live.address) as channel:
            watch = Watch(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
            watch.first.wait(30)
            assert live.stop() == 0
            assert watch.to_its_end() == [HEALTH.SERVING, HEALTH.NOT_SERVING]
        live.start()


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limner_server", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_listed(ended: subprocess.CompletedProcess[str], *problems: str) -> None:
    """It has ended for these problems and no others, in a line each."""
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == len(problems), ended.stderr
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith("limner-server: ")
        assert problem in line


def test_settings_that_are_wrong_by_themselves_are_all_listed() -> None:
    ended = run("--port=99999", "--max-batch-size=0")
    assert_listed(ended, "--port", "--max-batch-size")
    assert "99999" in ended.stderr


def test_a_misspelt_variable_is_listed_and_a_clients_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIMNER_MODEL_SIGNING_KEYS", "LIMNER_ACESS", "LIMNER_TLS_CA", "LIMNER_SERVER", "LIMNER_SERVICE_PORT"):
        monkeypatch.setenv(name, "x")
    ended = run("--port=0", f"--data-dir={tmp_path}", f"--model-repository={tmp_path}")
    assert_listed(
        ended,
        "LIMNER_ACESS in the environment is no setting; expected LIMNER_ACCESS",
        "LIMNER_MODEL_SIGNING_KEYS in the environment is no setting; expected LIMNER_MODEL_SIGNING_KEY",
    )


def test_what_is_wrong_with_the_surroundings_is_all_listed(server: LiveServer, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    (tmp_path / "file").touch()
    places = (f"--data-dir={tmp_path / 'file'}", f"--model-repository={tmp_path / 'file/below'}", "--weights-dir=/none")
    cuda = () if torch.cuda.is_available() else ("device is 'cuda'",)
    ended = run(f"--port={port}", "--database-url=oracle://x", "--device=cuda", *places)
    assert_listed(
        ended,
        *("--data-dir: expected a folder", "--model-repository: expected a folder", "--weights-dir: expected a folder"),
        *("database_url is", f"cannot listen on 127.0.0.1:{port}", *cuda),
    )


def test_a_taken_port_is_one_clear_line(server: LiveServer, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    ended = run(f"--port={port}", f"--data-dir={tmp_path}", f"--model-repository={tmp_path}")
    assert_listed(ended, f"--port: cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("workers", [1, 2])
def test_ports_that_are_taken_or_named_twice_are_all_listed(server: LiveServer, tmp_path: Path, workers: int) -> None:
    taken, port = server.address.rpartition(":")[2], free_port()
    ports = (f"--port={port}", f"--health-port={port}", f"--metrics-port={taken}", f"--workers={workers}")
    ended = run(*ports, f"--data-dir={tmp_path}", f"--model-repository={tmp_path}")
    assert_listed(
        ended,
        f"--health-port: cannot listen on 127.0.0.1:{port}",
        f"--metrics-port: cannot listen on 127.0.0.1:{taken}",
    )


def test_models_that_cannot_be_loaded_at_the_start_are_all_named(tmp_path: Path) -> None:
    ended = run("--port=0", "--load=this,that:3", f"--data-dir={tmp_path}", f"--model-repository={tmp_path}")
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("limner-server: load is 'this, that:3'; expected models that can be loaded")
    assert "no model 'this'" in last
    assert "no model 'that'" in last
    assert "Traceback" not in ended.stderr


def test_it_is_live_before_it_is_ready_and_refuses_what_it_cannot_do_yet(tmp_path: Path) -> None:
    publish_untrained(tmp_path / "model_repository", "m", size=32)
    live = LiveServer(tmp_path, port=free_port(), load="m")
    starting = threading.Thread(target=live.start)
    starting.start()
    address = f"127.0.0.1:{live.port}"
    seen: set[tuple[int, int, int]] = set()
    refused: set[grpc.StatusCode] = set()
    while (HEALTH.SERVING, HEALTH.SERVING, HEALTH.SERVING) not in seen:
        try:
            seen.add((health(address, "limner.live"), health(address, ""), health(address, "limner.v1.ModelService")))
            with grpc.insecure_channel(address) as channel:
                channel.unary_unary("/limner.v1.ModelService/ListModels")(b"", timeout=5)
        except grpc.RpcError as error:
            if "the server is starting" in (error.details() or ""):
                refused.add(error.code())
    starting.join()
    assert refused == {grpc.StatusCode.UNAVAILABLE}
    assert (HEALTH.SERVING, HEALTH.NOT_SERVING, HEALTH.NOT_SERVING) in seen
    with grpc.insecure_channel(address) as channel:
        request = model_pb2.GetModelRequest(model=common_pb2.ModelSpec(name="m"))
        state = model_pb2_grpc.ModelServiceStub(channel).GetModel(request).state
    live.stop()
    assert state == model_pb2.MODEL_STATE_LOADED


def test_health_knows_every_service_that_is_served(server: LiveServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        served = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert served - {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == set(SERVED)
    stubs = Path(common_pb2.__file__).parent.glob("*_pb2_grpc.py")
    contract = {name for file in stubs for name in re.findall(r"'/(limner\.v1\.\w+)/", file.read_text())}
    assert len(contract) >= len(SERVICES)
    assert contract <= served
