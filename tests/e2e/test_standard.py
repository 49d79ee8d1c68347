"""The standard services that other tools rely on, health and reflection; and how the server starts and stops."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.live import LiveServer

SERVICES = {"Cohort", "Training", "Inference", "Feature", "Simulation", "Model"}
HEALTH = health_pb2.HealthCheckResponse


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


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
            request = health_pb2.HealthCheckRequest()
            seen = [next(states := health_pb2_grpc.HealthStub(channel).Watch(request)).status]
            assert live.stop() == 0
            seen.append(next(states).status)
        assert seen == [HEALTH.SERVING, HEALTH.NOT_SERVING]
        live.start()


def test_wrong_settings_end_at_once_with_every_problem() -> None:
    command = [sys.executable, "-m", "limner_server", "--port=99999", "--max-batch-size=0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "--port" in ended.stderr
    assert "99999" in ended.stderr
    assert "--max-batch-size" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_clear_line(server: LiveServer, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "limner_server", f"--port={port}", f"--data-dir={tmp_path}"]
    ended = subprocess.run(
        [*command, f"--model-repository={tmp_path}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
