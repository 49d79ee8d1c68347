"""Logs: JSON, one object a line, each line of a call with its request id, each of a job with its id."""

import json
import re
import subprocess
import sys
from typing import Any

import grpc

from limner.v1.inference_pb2_grpc import InferenceServiceStub
from tests.live import LiveServer
from tests.telemetry.test_metrics import request


def lines(text: str) -> list[dict[str, Any]]:
    """What was logged; what gRPC's core prints is no log."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def of_call(server: LiveServer, *values: float, model: str = "obedient") -> list[dict[str, Any]]:
    """The lines of one call, by the request id that the caller has."""
    wanted = request(*values)
    wanted.model.name = model
    with grpc.insecure_channel(server.address) as channel:
        call = InferenceServiceStub(channel).Predict.future(wanted)  # type: ignore[attr-defined]
        request_id = dict(call.trailing_metadata())["limner-request-id"]
    return [line for line in lines(server.log()) if line.get("request_id") == request_id]


def test_every_line_is_an_object_with_time_level_logger_and_message(live: LiveServer) -> None:
    of_call(live, 0)
    found = lines(live.log())
    assert found
    for line in found:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])


def test_a_call_is_told_with_its_request_id(live: LiveServer) -> None:
    (line,) = [line for line in of_call(live, 0) if line["logger"] == "limner_server.rpc.metering"]
    assert re.fullmatch(r"/limner.v1.InferenceService/Predict ended with OK after [\d.]+ s", line["message"])


def test_what_fails_in_another_thread_is_told_with_the_request_id_of_its_image(live: LiveServer) -> None:
    (line,) = [line for line in of_call(live, 0, -1) if line["level"] == "error"]
    assert line["logger"] == "limner_server.executor.executor"
    assert "this image is below 0" in line["exception"]


def test_every_line_in_the_time_of_a_call_has_its_request_id(live: LiveServer) -> None:
    """Of the server's own; at this level the libraries tell of what they do beside it."""
    before = len(lines(live.log()))
    told = of_call(live, -1, -1, model="obedient")
    own = [line for line in lines(live.log())[before:] if line["logger"].startswith("limner_server")]
    assert own == [line for line in told if line["logger"].startswith("limner_server")]
    assert len(own) >= 3, "two failures and the end"


def test_a_warning_is_a_line_like_any_other() -> None:
    program = "import warnings; from limner_server.telemetry import logs; logs.configure('info'); warnings.warn('old')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = json.loads(ended.stderr)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "UserWarning: old" in line["message"]
