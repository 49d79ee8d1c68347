"""How the SDK reaches a server: retries, keepalive and limits of both clients, as options of one gRPC channel."""

import json
import math
import time
from enum import Enum, auto

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
DEFAULT_ADDRESS = "localhost:8500"
DEFAULT_TIMEOUT_S = 60.0

# Between two looks at a server that is not there yet, or not there any more.
POLL_S = 0.25

PREDICT = "/limner.v1.InferenceService/Predict"
EXTRACT_FEATURES = "/limner.v1.FeatureService/ExtractFeatures"
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
    """How long to ask again for what a lost server owes: so many seconds from its loss, however quiet it was before.

    What has never begun is not asked for again.
    """

    LIMIT_S = 60.0

    def __init__(self) -> None:
        self._lost_since: float | None = -math.inf

    def renew(self) -> None:
        """Note that a message came."""
        self._lost_since = None

    def exhausted(self) -> bool:
        """Return, after a failure, whether it is time to give up; the first one since a message starts the clock."""
        if self._lost_since is None:
            self._lost_since = time.monotonic()
        return time.monotonic() - self._lost_since > self.LIMIT_S


def repeatable(method: str) -> bool:
    """Whether a call may be made again elsewhere when its server is lost; `method` is "/limner.v1.SERVICE/METHOD"."""
    service, _, name = method.removeprefix("/limner.v1.").partition("/")
    return method == HEALTH_CHECK or (service, name) in (*_IDEMPOTENT, *_SCORING)


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


# A failed attempt takes a token and an answer gives a tenth of one back; below half of them nothing is repeated (gRFC
# A6), so that a service in trouble gets no more than a tenth of its load on top.
_RETRY_BUDGET = {"maxTokens": 100, "tokenRatio": 0.1}

# Calls go round the addresses that are connected and say themselves that they are serving (gRFC A17).
_HEALTHY_ONES = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}


class Role(Enum):
    """What a channel leads to, which decides who looks for another server when one is lost.

    Attributes
    ----------
    ALONE
        One server: gRPC asks it again.
    NAME
        A name of several addresses: gRPC spreads calls over them, and asks the next one.
    MEMBER
        One of several servers: the caller goes to another one.
    """

    ALONE = auto()
    NAME = auto()
    MEMBER = auto()


def service_config(role: Role = Role.ALONE) -> str:
    """Return the gRPC service config (gRFC A6): what may be called twice is retried, and a full queue is waited for."""
    lost = [] if role is Role.MEMBER else ["UNAVAILABLE"]
    methods = [
        # The server's pushback says how long to wait for a place in its queue.
        _method_config(_SCORING, [*lost, "RESOURCE_EXHAUSTED"]),
        *([_method_config(_IDEMPOTENT, lost)] if lost else []),
    ]
    balancing = {} if role is Role.ALONE else _HEALTHY_ONES
    return json.dumps({"methodConfig": methods, "retryThrottling": _RETRY_BUDGET, **balancing})


def channel_options(role: Role = Role.ALONE) -> list[tuple[str, str | int]]:
    """Return the options of a channel, sync or async."""
    from importlib.metadata import version  # here and not above, where `import limner` would pay for it

    return [
        ("grpc.service_config", service_config(role)),
        ("grpc.primary_user_agent", f"limner/{version('limner')}"),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A rolling restart changes the addresses of a name within seconds; gRPC's own limit is half a minute.
        *([("grpc.dns_min_time_between_resolutions_ms", 5_000)] if role is Role.NAME else []),
        # A member that is not connected is taken for away; it must not doze off.
        *([("grpc.client_idle_timeout_ms", 2**31 - 1)] if role is Role.MEMBER else []),
    ]
