"""The reading room's own server, asked without a browser."""

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.rpc import code_pb2

from limner.v1 import review_pb2, review_pb2_grpc
from tests.reading.room import serving
from tests.sdk import servers


class Guarded(review_pb2_grpc.ReviewServiceServicer):
    """Takes the page for somebody who may not ask."""

    def OpenReading(self, request: review_pb2.OpenReadingRequest, context: Any) -> review_pb2.ReadingForm:
        servers.refuse(context, code_pb2.PERMISSION_DENIED, "'page@clinic.example' has no role reader")
        raise AssertionError


def asked(address: str, token: str = "") -> tuple[int, dict[str, str]]:
    """Ask for the reading, which is refused."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", "/api/reading", headers={"authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    return answer.status, json.load(answer)


def test_readers_are_not_told_of_servers_and_principals(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        servers.serving(review_pb2_grpc.add_ReviewServiceServicer_to_server, Guarded()) as server,
        serving(server) as address,
    ):
        status, told = asked(address, "secret-token")
    assert (status, told["code"]) == (502, "PERMISSION_DENIED")
    assert told["error"] == "The Limner server failed at this; the log of this page says at what."
    logged = capfd.readouterr().err
    assert "/api/reading failed, request r-1: 'page@clinic.example' has no role reader" in logged
    assert "secret-token" not in logged


def test_a_server_that_is_away_is_told_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    with serving("127.0.0.1:1") as address:
        status, told = asked(address, "x")
        assert asked(address)[0] == 401
    assert (status, told["error"]) == (503, "The Limner server cannot be reached.")
    assert "no Limner server answers at 127.0.0.1:1" in capfd.readouterr().err
