"""How the SDK reaches a server: retries, keepalive and limits of both clients, as options of one gRPC channel."""

import json
import time

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
DEFAULT_ADDRESS = "localhost:8500"
DEFAULT_TIMEOUT_S = 60.0

# Between two looks at a server that is not there yet, or not there any more.
POLL_S = 0.25

PREDICT = "/limner.v1.InferenceService/Predict"
PREDICT = "/limner.v1.InferenceService/Predict"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# grpc.health.v1.HealthCheckResponse {status: SERVING}, on the wire; spares a dependency for two bytes.
SERVING = b"\x08\x01"

_SCORING = (("InferenceService", "Predict"), ("FeatureService", "ExtractFeatures"))
_IDEMPOTENT = (
    ("CohortService", "GetCohort"),
    ("CohortService", "ListCohorts"),
    ("TrainingService", "StartTraining"),  # by its request_id
    ("TrainingService", "GetTraining"),
    ("TrainingService", "ListTrainings"),
    ("TrainingService", "WatchTraining"),
    ("SimulationService", "Simulate"),
    ("ModelService", "ListModels"),
    ("ModelService", "GetModel"),
    ("ModelService", "LoadModel"),
    ("ModelService", "PromoteModel"),
    ("ReviewService", "GetReading"),
    ("ReviewService", "ListReadings"),
    ("ReviewService", "CloseReading"),
    ("ReviewService", "OpenReading"),
    ("ReviewService", "NextCase"),
    ("ReviewService", "SubmitVerdict"),  # by the verdict's id
    ("ReviewService", "GetAgreement"),
    ("ReviewService", "ExportReading"),
)


class Patience:
    """How long to ask again for what a lost server owes: so many seconds from its last message."""

    LIMIT_S = 60.0

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._until = 0.0

    def renew(self) -> None:
        """Note that a message came."""
        self._until = time.monotonic() + self._limit_s

    def exhausted(self) -> bool:
        """Return whether it is time to give up."""
        return time.monotonic() > self._until


def _method_config(methods: tuple[tuple[str, str], ...], codes: list[str]) -> dict[str, object]:
    return {
        "name": [{"service": f"limner.v1.{service}", "method": method} for service, method in methods],
        "retryPolicy": {
            "maxAttempts": 4,
            "initialBackoff": "0.2s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": codes,
        },
    }


def service_config() -> str:
    """Return the gRPC service config (gRFC A6): what may be called twice is retried, and a full queue is waited for."""
    return json.dumps(
        {
            "methodConfig": [
                _method_config(_IDEMPOTENT, ["UNAVAILABLE"]),
                # The server's pushback says how long to wait for a place in its queue.
                _method_config(_SCORING, ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]),
            ]
        }
    )


def channel_options() -> list[tuple[str, str | int]]:
    """Return the options of a channel, sync or async."""
    return [
        ("grpc.service_config", service_config()),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
