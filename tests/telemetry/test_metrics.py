"""Every metric is moved by what it counts, on a running server."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from limner import Client
from limner.errors import LimnerError
from limner.v1 import common_pb2, inference_pb2
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from tests.live import LiveServer
from tests.telemetry import obedient
from tests.telemetry.conftest import Metered
from tests.telemetry.obedient import image
from tests.telemetry.scraped import Page, scrape, wait_for

PREDICT = {"service": "limner.v1.InferenceService", "method": "Predict"}
SLOW = 2000
"""Multiplications that take a model about a second."""


def request(*values: float) -> inference_pb2.PredictRequest:
    images = [
        common_pb2.Image(
            id=str(number),
            grid=common_pb2.GridArray(
                data=image(value).tobytes(), data_type=common_pb2.DATA_TYPE_FLOAT32, size=obedient.SIZE
            ),
        )
        for number, value in enumerate(values)
    ]
    return inference_pb2.PredictRequest(model=common_pb2.ModelSpec(name=obedient.NAME), images=images)


def stream(*values: float) -> Iterator[inference_pb2.PredictStreamRequest]:
    yield inference_pb2.PredictStreamRequest(header={"model": {"name": obedient.NAME}})
    yield inference_pb2.PredictStreamRequest(images=request(*values).images)


class Moved:
    """How much a page moved between its two readings."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._before = scrape(server)

    def __call__(self, name: str, **labels: str) -> float:
        """The growth of a sample since this was made."""
        return scrape(self._server)(name, **labels) - self._before(name, **labels)


@pytest.fixture
def moved(live: LiveServer) -> Moved:
    return Moved(live)


@pytest.fixture
def client(live: LiveServer) -> Client:
    return Client(live.address)


def test_calls_are_counted_by_service_method_and_code(client: Client, moved: Moved) -> None:
    client.predict(obedient.NAME, [image(0)])
    with pytest.raises(LimnerError):
        client.predict("no-such-model", [image(0)])
    assert moved("limner_rpc_requests_total", **PREDICT, code="OK") == 1
    assert moved("limner_rpc_requests_total", **PREDICT, code="NOT_FOUND") == 1
    assert moved("limner_rpc_seconds_count", **PREDICT) == 2
    assert moved("limner_rpc_seconds_sum", **PREDICT) > 0
    assert moved("limner_rpc_in_flight") == 0


def test_names_that_callers_make_up_become_no_labels(live: LiveServer, client: Client, moved: Moved) -> None:
    with grpc.insecure_channel(live.address) as channel:
        for path in ("/made.up.Service/Method", "/limner.v1.InferenceService/MadeUp", "/made-up"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(LimnerError):
        client.predict("made-up", [image(0)])
    assert moved("limner_rpc_requests_total", service="unknown", method="unknown", code="UNIMPLEMENTED") == 3
    assert "made" not in scrape(live).text.lower()


def test_reflection_is_counted_and_probes_are_not(live: LiveServer, moved: Moved) -> None:
    with grpc.insecure_channel(live.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert "limner.v1.InferenceService" in ProtoReflectionDescriptorDatabase(channel).get_services()
    assert moved("limner_rpc_requests_total", service="grpc.health.v1.Health") == 0  # a probe is no traffic
    wait_for(live, lambda page: page("limner_rpc_requests_total", method="ServerReflectionInfo") > 0)


def test_images_batches_and_stages(client: Client, moved: Moved) -> None:
    client.predict(obedient.NAME, [image(0), image(0), image(0)])
    assert moved("limner_images_total", model=obedient.NAME, version="1") == 3
    assert moved("limner_batch_images_sum", model=obedient.NAME, version="1") == 3
    assert moved("limner_batch_images_count") == moved("limner_batch_images_bucket", le="1.0") == 3
    for stage in ("decode", "queue", "compute", "encode"):
        assert moved("limner_stage_seconds_count", model=obedient.NAME, stage=stage) == 3
        assert moved("limner_stage_seconds_bucket", model=obedient.NAME, stage=stage, le="+Inf") == 3
        assert moved("limner_stage_seconds_sum", model=obedient.NAME, stage=stage) > 0


def test_what_waits_what_is_in_flight_and_what_a_full_queue_refuses(live: LiveServer, moved: Moved) -> None:
    with busy(live, waiting=3) as (stub, _):
        page = scrape(live)
        assert page("limner_queue_images", model=obedient.NAME, version="1") == 3
        assert page("limner_queue_limit_images", model=obedient.NAME, version="1") == 4
        assert page("nv_inference_pending_request_count", model=obedient.NAME, version="1") == 3
        assert page("limner_rpc_in_flight", **PREDICT) == 5
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request(*[0] * 8))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        refused = moved("limner_rejections_total", reason="queue_full")
        assert refused == moved(nv("request_failure"), reason="REJECTED") >= 1
    assert scrape(live)("limner_queue_images") == 0


def test_what_is_cancelled_and_what_comes_too_late(live: LiveServer, moved: Moved) -> None:
    with busy(live, waiting=2) as (_, calls), triton.InferenceServerClient(live.address) as other:
        for call in calls:
            call.cancel()
        wait_for(live, lambda page: in_flight(page) == 0)
        assert moved("limner_rejections_total", reason="cancelled") == 4
        assert moved(nv("request_failure"), reason="CANCELED") == 4
        assert moved("limner_rpc_requests_total", **PREDICT, code="CANCELLED") == 4
        tensor = triton.InferInput("images", [1, obedient.SIZE, obedient.SIZE], "FP32")
        tensor.set_data_from_numpy(image(0)[None])
        with pytest.raises(triton.InferenceServerException, match="deadline"):
            other.infer(obedient.NAME, [tensor], timeout=1)
    assert moved("limner_rejections_total", reason="deadline") == 1
    assert moved("limner_rpc_requests_total", method="ModelInfer", code="DEADLINE_EXCEEDED") == 1


def test_a_callers_own_deadline_is_told_from_his_leaving(live: LiveServer, moved: Moved) -> None:
    with busy(live, waiting=1) as (stub, _):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.PredictStream(stream(0), timeout=0.2))  # a call that would wait longer is not admitted
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        ended = {**PREDICT, "method": "PredictStream", "code": "DEADLINE_EXCEEDED"}
        wait_for(live, lambda page: page("limner_rpc_requests_total", **ended) > 0)
    assert moved("limner_rpc_requests_total", **ended) == 1


def test_bad_input_and_failed_forward_passes(live: LiveServer, moved: Moved) -> None:
    wanted = request(0, -1, 0)
    wanted.images[0].grid.size = 7
    with grpc.insecure_channel(live.address) as channel:
        results = InferenceServiceStub(channel).Predict(wanted).results
    assert [result.HasField("prediction") for result in results] == [False, False, True]
    assert moved("limner_rejections_total", model=obedient.NAME, version="1", reason="invalid") == 1
    assert moved("limner_rejections_total", model=obedient.NAME, version="1", reason="engine") == 1
    assert moved(nv("request_failure"), reason="OTHER") == moved(nv("request_failure"), reason="BACKEND") == 1


def test_a_batch_that_memory_ran_out_for(live: LiveServer, moved: Moved) -> None:
    with grpc.insecure_channel(live.address) as channel:
        (result,) = InferenceServiceStub(channel).Predict(request(obedient.HUGE)).results
    assert result.status.message == "the device has no memory for one image"
    assert moved("limner_out_of_memory_total", model=obedient.NAME, version="1") == 1


def test_tritons_names_tell_what_limners_tell(client: Client, moved: Moved) -> None:
    client.predict(obedient.NAME, [image(1)] * 3)
    assert moved(nv("request_success")) == moved(nv("count")) == 3
    # A batch whose callers have left, of a test before, ends when it ends; Triton's name counts no such one.
    assert 0 < moved(nv("exec_count")) <= moved("limner_batch_images_count")
    stages = {"queue": "queue", "compute_input": "decode", "compute_infer": "compute", "compute_output": "encode"}
    for theirs, ours in stages.items():
        seconds = moved("limner_stage_seconds_sum", stage=ours)
        assert moved(nv(f"{theirs}_duration_us")) == pytest.approx(seconds * 1e6, abs=2)
    assert moved(nv("request_duration_us")) >= moved(nv("compute_infer_duration_us")) > 0


def test_a_running_training_tells_how_far_it_is(metered: Metered) -> None:
    page, job = metered.page, {"job_id": metered.training}
    assert 2 <= page("limner_training_epoch", **job) <= page("limner_training_epochs", **job) == 500
    assert page("limner_training_loss", **job) > 0
    assert page("limner_training_images_per_second", **job) > 0
    assert 0 < page("limner_job_progress_ratio", kind="training", **job) < 1
    assert page("limner_jobs", kind="training", state="RUNNING") == 1
    now = scrape(metered.server)
    assert now("limner_jobs", kind="training", state="RUNNING") == 0
    assert now("limner_jobs", kind="training", state="CANCELLED") == 1
    assert metered.training not in now.text


def test_gpus_have_the_figures_of_their_driver(live: LiveServer) -> None:
    page = scrape(live)
    for gpu in ("GPU-a", "GPU-b"):
        assert page("limner_gpu_utilization_ratio", gpu_uuid=gpu) == 0.37
        assert page("limner_gpu_memory_used_bytes", gpu_uuid=gpu) == 1503238553
        assert page("limner_gpu_memory_total_bytes", gpu_uuid=gpu) == 2**34
    watts = page.families["limner_gpu_power_watts"].samples
    assert [(sample.labels, sample.value) for sample in watts] == [({"gpu_uuid": "GPU-a"}, 61.5)], "b has no meter"
    for line in (
        'nv_gpu_utilization{gpu_uuid="GPU-b"} 0.37',
        'nv_gpu_power_usage{gpu_uuid="GPU-a"} 61.5',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1503238553',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 17179869184',
    ):
        assert line in page.text.splitlines(), "plain decimals, as perf_analyzer needs them"


def test_the_process_and_what_it_was_built_of(live: LiveServer) -> None:
    page, process = scrape(live), psutil.Process(live.pid)
    assert page("process_resident_memory_bytes") == pytest.approx(process.memory_info().rss, rel=0.1)
    assert page("process_open_fds") == pytest.approx(process.num_fds(), abs=4)
    assert page("process_start_time_seconds") == pytest.approx(process.create_time(), abs=1)
    assert 0 < page("process_cpu_seconds_total") <= sum(process.cpu_times()[:2])
    assert page("limner_build_info", version=version("limner"), torch=version("torch"), grpcio=grpc.__version__) == 1


def test_there_is_one_page(live: LiveServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{live.metrics_address}/", timeout=10)
    assert (caught.value.code, caught.value.read()) == (404, b"there is only /metrics\n")


def test_a_taken_port_is_one_clear_line(live: LiveServer, tmp_path: Path) -> None:
    port = live.metrics_address.rpartition(":")[2]
    command = [sys.executable, "-m", "limner_server", "--port=0", f"--metrics-port={port}", f"--data-dir={tmp_path}"]
    ended = subprocess.run(
        [*command, f"--model-repository={tmp_path}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert f"--metrics-port: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@contextmanager
def busy(server: LiveServer, waiting: int) -> Iterator[tuple[InferenceServiceStub, list[Any]]]:
    """Keep both lanes at work on an image each while one or more wait; ends when all of that is over."""
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = InferenceServiceStub(channel)
        calls = [stub.Predict.future(request(SLOW)) for _ in range(2)]
        # Taken by the lanes before the others come: until then they fill the queue.
        wait_for(server, lambda page: (page("limner_queue_images"), in_flight(page)) == (0, 2))
        calls += [stub.Predict.future(request(SLOW)) for _ in range(waiting)]
        # While something waits, no lane is idle.
        wait_for(server, lambda page: (page("limner_queue_images"), in_flight(page)) == (waiting, 2 + waiting))
        yield stub, calls
        for call in calls:
            call.cancel()
        wait_for(server, lambda page: in_flight(page) == 0)


def in_flight(page: Page) -> float:
    """Calls of Predict that have not ended."""
    return page("limner_rpc_in_flight", **PREDICT)


def nv(name: str) -> str:
    """A counter of Triton's as the parser names it, which knows none without `_total`."""
    return f"nv_inference_{name}_total"
