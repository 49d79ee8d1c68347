"""`--workers N`: several processes on one port are one service, whichever of them answers and whichever dies."""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.models import publish_untrained
from limner import Client
from limner.v1 import common_pb2, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, training_pb2
from limner.v1.training_pb2_grpc import TrainingServiceStub
from limner_server.settings import Settings
from limner_server.workers import reserved_port
from tests.e2e.phantoms import QUICK, import_phantom
from tests.e2e.test_standard import Watch, run
from tests.live import LiveServer

WORKERS = 2
CORES = os.cpu_count() or 1
SIZE = 32
CONFIG = QUICK.model_copy(update={"epochs": 3})
HEALTH = health_pb2.HealthCheckResponse


class Service(LiveServer):
    """A server of two workers."""

    def supervisors(self) -> list[psutil.Process]:
        return [process for process in all_processes() if f"--data-dir={self.data_dir}" in process.info["cmdline"]]

    def supervisor(self) -> psutil.Process:
        (found,) = self.supervisors()
        return found

    def workers(self) -> list[psutil.Process]:
        return self.supervisor().children()

    def lines(self) -> dict[int, grpc.Channel]:
        """A connection to each worker that listens, by the worker's process id."""
        found: dict[int, grpc.Channel] = {}
        until(lambda: len(listening(self.workers())) == WORKERS)
        for _ in range(100):
            channel, worker = connect(self.address, self.workers())
            if found.setdefault(worker, channel) is not channel:
                channel.close()
            if len(found) == WORKERS:
                return found
        pytest.fail("100 connections, and all to one worker")


def all_processes() -> Iterator[psutil.Process]:
    return (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])


def listening(workers: list[psutil.Process]) -> list[psutil.Process]:
    return [w for w in workers if any(c.status == psutil.CONN_LISTEN for c in w.net_connections("tcp"))]


def connect(address: str, workers: list[psutil.Process]) -> tuple[grpc.Channel, int]:
    """A connection of its own, and the id of the process at its other end."""
    before = own_ports()
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    grpc.channel_ready_future(channel).result(timeout=30)
    (port,) = own_ports() - before
    (worker,) = [w.pid for w in workers if port in {c.raddr.port for c in w.net_connections("tcp") if c.raddr}]
    return channel, worker


def own_ports() -> set[int]:
    mine = psutil.Process().net_connections("tcp")
    return {connection.laddr.port for connection in mine if connection.status == psutil.CONN_ESTABLISHED}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that in two minutes"
        time.sleep(0.1)


def predict(channel: grpc.Channel, model: str) -> inference_pb2.PredictResponse:
    data = np.zeros((SIZE, SIZE), np.float32).tobytes()
    grid = common_pb2.GridArray(data=data, data_type=common_pb2.DATA_TYPE_FLOAT32, size=SIZE)
    request = inference_pb2.PredictRequest(
        model=common_pb2.ModelSpec(name=model), images=[common_pb2.Image(id="i", grid=grid)]
    )
    return inference_pb2_grpc.InferenceServiceStub(channel).Predict(request, timeout=60)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    live = Service(tmp_path_factory.mktemp("workers"), workers=WORKERS, threads=1, drain_s=2, health_port=0)
    publish_untrained(live.model_repository, "untrained", size=SIZE)
    live.start()
    yield live
    if live.supervisors():
        live.stop()


@pytest.fixture
def service(standing: Service) -> Service:
    """One service for all tests, started again where a test has ended it."""
    if not standing.supervisors():
        standing.start()
    return standing


def test_connections_are_dealt_out_to_workers_that_answer_alike(service: Service) -> None:
    lines = service.lines()
    one, other = (predict(line, "untrained") for line in lines.values())
    assert one.results[0].prediction == other.results[0].prediction
    assert one.model == other.model
    assert len(service.workers()) == len(lines) == WORKERS


def test_what_one_worker_unloads_goes_from_all(service: Service) -> None:
    one, other = (model_pb2_grpc.ModelServiceStub(line) for line in service.lines().values())
    spec = common_pb2.ModelSpec(name="untrained")
    for worker in (one, other):
        loaded = worker.LoadModel(model_pb2.LoadModelRequest(model=spec), timeout=60)
        assert loaded.state == model_pb2.MODEL_STATE_LOADED
    assert one.UnloadModel(model_pb2.UnloadModelRequest(model=spec)).state == model_pb2.MODEL_STATE_AVAILABLE
    get = model_pb2.GetModelRequest(model=spec)
    until(lambda: other.GetModel(get).state == model_pb2.MODEL_STATE_AVAILABLE)
    with pytest.raises(grpc.RpcError) as caught:
        other.UnloadModel(model_pb2.UnloadModelRequest(model=spec))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_what_one_worker_deletes_is_gone_for_all(service: Service) -> None:
    publish_untrained(service.model_repository, "doomed", size=SIZE)
    one, other = service.lines().values()
    assert predict(one, "doomed").model == predict(other, "doomed").model
    doomed = model_pb2.DeleteModelRequest(model=common_pb2.ModelSpec(name="doomed", version="1"))
    model_pb2_grpc.ModelServiceStub(one).DeleteModel(doomed)
    with pytest.raises(grpc.RpcError) as caught:
        predict(other, "doomed")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_any_worker_is_asked_for_a_training_and_survives_the_one_that_runs_it(
    service: Service, phantom: Path, key: bytes
) -> None:
    with Client(service.address) as client:
        import_phantom(client, phantom, "phantom", key)
        training = client.start_training("phantom", "trained", CONFIG).id
    lines = service.lines()
    watch = training_pb2.WatchTrainingRequest(id=training)
    for line in lines.values():
        assert any(state.progress.epoch >= 2 for state in TrainingServiceStub(line).WatchTraining(watch))
    owner = job_process(training).ppid()
    (survivor,) = lines.keys() - {owner}
    psutil.Process(owner).kill()
    until(lambda: answers(lines[owner]))  # the channel finds another worker by itself
    *_, last = TrainingServiceStub(lines[survivor]).WatchTraining(watch)
    assert (last.state, last.resumed) == (training_pb2.JOB_STATE_SUCCEEDED, 1)
    assert last.result.name == "trained"
    assert [folder.name for folder in (service.model_repository / "trained").glob("[0-9]*")] == ["1"]
    assert owner not in service.lines(), "another has taken its place"


def test_any_worker_cancels_a_training(service: Service, phantom: Path, key: bytes) -> None:
    with Client(service.address) as client:
        import_phantom(client, phantom, "phantom", key)
        training = client.start_training("phantom", "cancelled", CONFIG).id
        next(state for state in client.watch_training(training) if state.progress is not None)
    lines = service.lines()
    del lines[job_process(training).ppid()]
    (other,) = (TrainingServiceStub(line) for line in lines.values())
    cancelled = other.CancelTraining(training_pb2.CancelTrainingRequest(id=training))
    assert cancelled.state == training_pb2.JOB_STATE_CANCELLED
    assert not job_processes(training)
    assert not (service.data_dir / "jobs" / training).exists()


def test_ports_that_workers_hold_are_taken(service: Service, tmp_path: Path) -> None:
    port = service.address.rpartition(":")[2]
    probes = re.findall(r"health is answered in the clear on 127\.0\.0\.1:(\d+)", service.log())[-WORKERS:]
    assert len(probes) == WORKERS
    assert len(set(probes)) == 1, "one port for all workers"
    ended = run(f"--port={port}", f"--health-port={probes[0]}", "--workers=2", f"--data-dir={tmp_path}")
    assert ended.returncode == 2
    assert f"--port: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert f"--health-port: cannot listen on 127.0.0.1:{probes[0]}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_stopping_drains_every_worker(service: Service) -> None:
    processes = [service.supervisor(), *service.workers()]
    stubs: list[Any] = [health_pb2_grpc.HealthStub(line) for line in service.lines().values()]  # Watch is not in types
    watches = [Watch(stub.Watch(health_pb2.HealthCheckRequest())) for stub in stubs]
    for watch in watches:
        watch.first.wait(30)
    assert service.stop() == 0
    assert [watch.to_its_end() for watch in watches] == [[HEALTH.SERVING, HEALTH.NOT_SERVING]] * WORKERS
    assert not any(process.is_running() for process in processes)
    assert "Traceback" not in service.log()


def test_a_killed_supervisor_leaves_nothing_and_frees_the_port(service: Service) -> None:
    processes = service.workers()
    service.kill()
    assert not psutil.wait_procs(processes, timeout=30)[1]
    with socket.create_server(("127.0.0.1", int(service.address.rpartition(":")[2]))):
        pass


def test_wrong_settings_are_told_once(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is nothing wrong with --device=cuda here")
    ended = run("--workers=2", "--port=0", "--device=cuda", f"--data-dir={tmp_path}")
    assert ended.returncode == 2
    assert ended.stderr.count("limner-server: device is 'cuda'") == 1
    assert "Traceback" not in ended.stderr
    assert not ended.stdout


def test_no_workers_are_too_few() -> None:
    ended = run("--workers=0")
    assert (ended.returncode, ended.stderr.count("--workers")) == (2, 1)


@pytest.mark.parametrize(
    ("workers", "threads", "expected"), [(1, 0, 0), (1, 3, 3), (2, 3, 3), (2, 0, max(1, CORES // 2)), (200, 0, 1)]
)
def test_the_cores_are_divided_among_the_workers(workers: int, threads: int, expected: int) -> None:
    assert Settings(workers=workers, threads=threads).engine_threads == expected


def test_a_port_is_reserved_before_anyone_listens() -> None:
    with reserved_port("127.0.0.1", 0) as port:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"), reserved_port("127.0.0.1", port):
            pass
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()


def answers(line: grpc.Channel) -> bool:
    try:
        return predict(line, "untrained").results[0].HasField("prediction")
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise


def job_process(job_id: str) -> psutil.Process:
    (process,) = job_processes(job_id)
    return process


def job_processes(job_id: str) -> list[psutil.Process]:
    return [process for process in all_processes() if process.info["cmdline"][-1].endswith(f"/jobs/{job_id}")]
