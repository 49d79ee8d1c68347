"""One trace from the SDK's call to the stages of its images in the server; and nothing of it where it is not wanted."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Tracer

from limner import AsyncClient, Client
from limner.errors import NotFoundError
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from limner_server.telemetry.traces import MOST_REQUESTS
from tests.e2e.phantoms import import_phantom
from tests.live import LiveServer
from tests.telemetry import obedient
from tests.telemetry.collector import Collector, Span, collecting
from tests.telemetry.conftest import LONG
from tests.telemetry.obedient import image
from tests.telemetry.test_metrics import request

PREDICT = "/limner.v1.InferenceService/Predict"
STREAM = "/limner.v1.InferenceService/PredictStream"
STAGES = {"decode", "queue", "compute", "encode"}


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, Collector]]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: tuple[str, Collector]) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("traced"), trace_endpoint=collector[0], metrics_port=0)
    obedient.publish(server.model_repository)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms between two exports
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def program(collector: tuple[str, Collector]) -> Tracer:
    """What a program does that wants its calls traced; a process can do it once."""
    provider = TracerProvider(resource=Resource.create({"service.name": "program"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(collector[0])))
    trace.set_tracer_provider(provider)
    return trace.get_tracer("program")


def spans_of(collector: Collector, span: trace.Span, *names: str) -> dict[tuple[str, str], list[Span]]:
    """The spans of a trace by service and name, once the server's have these names."""
    wanted = span.get_span_context().trace_id.to_bytes(16)

    def of_trace(spans: list[Span]) -> dict[tuple[str, str], list[Span]]:
        found = defaultdict(list)
        for each in spans:
            if each.trace == wanted:
                found[each.service, each.name].append(each)
        return found

    served = {("limner-server", name) for name in names}
    return of_trace(collector.wait_for(lambda spans: served <= of_trace(spans).keys()))


def test_one_trace_from_the_sdk_to_the_stages(
    traced: LiveServer, collector: tuple[str, Collector], program: Tracer
) -> None:
    with Client(traced.address, tracing=True) as client, program.start_as_current_span("study") as study:
        client.predict(obedient.NAME, [image(1)])
    found = spans_of(collector[1], study, PREDICT, *STAGES)
    (root,), (sent,), (served,) = (
        found[each] for each in (("program", "study"), ("program", PREDICT), ("limner-server", PREDICT))
    )
    assert (root.parent, sent.parent, served.parent) == (b"", root.id, sent.id)
    assert served.attributes["rpc.grpc.status_code"] == 0
    stages = [span for name in STAGES for span in found["limner-server", name]]
    assert len(stages) == len(STAGES)
    for stage in stages:
        assert stage.parent == served.id
        assert served.start <= stage.start <= stage.end <= served.end
    decode, queue, compute, encode = (
        found["limner-server", name][0] for name in ("decode", "queue", "compute", "encode")
    )
    assert decode.end == queue.start <= queue.end == compute.start < compute.end <= encode.start
    assert compute.attributes["limner.batch_images"] == 1


def test_a_span_has_the_request_id_and_the_status_and_no_exception(
    traced: LiveServer, collector: tuple[str, Collector], program: Tracer
) -> None:
    with Client(traced.address, tracing=True) as client, program.start_as_current_span("study") as study:
        with pytest.raises(NotFoundError):
            client.predict("no-such-model", [image(0)])
        with grpc.insecure_channel(traced.address) as channel:
            call = InferenceServiceStub(channel).Predict.future(request(0))  # type: ignore[attr-defined]
            request_id = dict(call.trailing_metadata())["limner-request-id"]
    (failed,) = spans_of(collector[1], study, PREDICT)["limner-server", PREDICT]
    assert failed.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert failed.events == 0
    spans = collector[1].wait_for(lambda spans: parents(spans, request_id))
    assert parents(spans, request_id) == [b""], "a caller without a trace gets one of the server's own"


def parents(spans: list[Span], request_id: str) -> list[bytes]:
    """Parents of the spans of a call, by its request id."""
    return [span.parent for span in spans if span.attributes.get("limner.request_id") == request_id]


def test_the_stages_of_a_long_stream_are_told_of_its_beginning(
    traced: LiveServer, collector: tuple[str, Collector], program: Tracer
) -> None:
    with Client(traced.address, tracing=True) as client, program.start_as_current_span("study") as study:
        results = list(client.predict_stream(obedient.NAME, [image(0)] * (3 * MOST_REQUESTS)))
    assert len(results) == 3 * MOST_REQUESTS
    found = spans_of(collector[1], study, STREAM, *STAGES)
    assert {len(found["limner-server", name]) for name in STAGES} == {MOST_REQUESTS}
    assert {span.parent for name in STAGES for span in found["limner-server", name]} == {
        found["limner-server", STREAM][0].id
    }


def test_the_asynchronous_client_traces_too(
    traced: LiveServer, collector: tuple[str, Collector], program: Tracer
) -> None:
    async def call() -> None:
        async with AsyncClient(traced.address, tracing=True) as client:
            await client.predict(obedient.NAME, [image(0)])
            assert [result.ok async for result in client.predict_stream(obedient.NAME, [image(0)])] == [True]

    with program.start_as_current_span("study") as study:
        asyncio.run(call())
    found = spans_of(collector[1], study, PREDICT, STREAM, *STAGES)
    for name in (PREDICT, STREAM):
        (sent,), (served,) = found["program", name], found["limner-server", name]
        assert served.parent == sent.id


def test_the_calls_of_a_run_are_of_the_trace_of_its_caller(
    traced: LiveServer, collector: tuple[str, Collector], program: Tracer, tmp_path: Path
) -> None:
    async def score() -> None:
        async with AsyncClient(traced.address, tracing=True) as client:
            await client.score(obedient.NAME, [image(0)] * 20, tmp_path / "other")

    with Client(traced.address, tracing=True) as client, program.start_as_current_span("study") as study:
        client.score(obedient.NAME, [image(0)] * 20, tmp_path / "one")
        asyncio.run(score())
    found = spans_of(collector[1], study, PREDICT)
    calls = found["program", PREDICT]
    assert len(calls) >= 2 * 2, "of either client more than one"
    assert {call.parent for call in calls} == {found["program", "study"][0].id}
    assert {call.parent for call in found["limner-server", PREDICT]} <= {call.id for call in calls}


def test_a_traced_client_follows_and_leaves_streams_as_ever(
    traced: LiveServer, program: Tracer, phantom: Path, key: bytes
) -> None:
    with Client(traced.address, tracing=True) as client, program.start_as_current_span("study"):
        client.wait_ready()
        import_phantom(client, phantom, "pelvis", key)
        training = client.start_training("pelvis", "endless", LONG).id
        assert next(state for state in client.watch_training(training) if state.progress is not None)
        assert client.cancel_training(training).state.name == "CANCELLED"
    assert "Traceback" not in traced.log()


def test_health_is_answered_and_not_traced(traced: LiveServer, collector: tuple[str, Collector]) -> None:
    with grpc.insecure_channel(traced.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    assert not [span for span in collector[1].spans() if "Health" in span.name]


def test_the_sdk_imports_no_opentelemetry_where_none_is_wanted() -> None:
    program = "import sys, limner; limner.Client(); print([m for m in sys.modules if m.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


WITHOUT = "import sys; sys.modules['opentelemetry'] = None; "


def test_a_missing_extra_is_named_by_the_sdk() -> None:
    program = WITHOUT + "import limner; limner.Client(tracing=True)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: tracing needs OpenTelemetry: pip install 'limner[tracing]'" in ended.stderr


def test_a_missing_extra_is_named_by_the_server(tmp_path: Path) -> None:
    program = WITHOUT + "from limner_server.__main__ import main; main()"
    flags = ["--port=0", "--trace-endpoint=http://localhost:4317", f"--data-dir={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *flags, f"--model-repository={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "limner-server: trace_endpoint is 'http://localhost:4317'" in ended.stderr
    assert "pip install 'limner[tracing]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_endpoint_that_is_none_is_refused() -> None:
    command = [sys.executable, "-m", "limner_server", "--trace-endpoint=collector:4317"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "--trace-endpoint: expected http://HOST:PORT" in ended.stderr
