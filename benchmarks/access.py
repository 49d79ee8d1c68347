"""What asking who calls costs: calls with a token, on a server that asks, over calls of a server that asks nobody."""

import asyncio
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from benchmarks.harness import PAIRS, Result, interleaved
from limner_server.access.access import Access
from limner_server.access.limits import Meters
from tests.issuer import Issuer
from tests.live import LiveServer

NAME = "access"
SUMMARY = "the smallest call with a checked token, p50, over the same call where nobody is asked (plain, loopback)"

_BAR = 1.25
_CALLS = 400
_METHOD = "/inference.GRPCInferenceService/ServerLive"


def run(pairs: int = PAIRS) -> Result:
    """Measure in pairs of p50 over calls that follow one another, and the check alone in this process."""
    issuer = Issuer()
    bearer = (("authorization", f"Bearer {issuer.token('ada', 'read')}"),)
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = issuer.write_access(folder, "limits: {calls_per_s: 1000000}\n")
        with (
            LiveServer(folder / "asks", access=file) as asks,
            LiveServer(folder / "open") as open_to_all,
            grpc.insecure_channel(asks.address) as with_access,
            grpc.insecure_channel(open_to_all.address) as without,
        ):
            found = interleaved(lambda: _p50(with_access, bearer), lambda: _p50(without, bearer), pairs)
        first_us, again_us = asyncio.run(_check_us(Access(file, mutual_tls=False), issuer))
    figures = {
        "ours_us": 1e6 * statistics.median(found.ours),
        "reference_us": 1e6 * statistics.median(found.reference),
        "first_check_us": first_us,
        "check_us": again_us,
    }
    return Result(NAME, "p50 with a token / p50 where nobody is asked", _BAR, True, found.ratios, figures)


def _p50(channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> float:
    stub: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
    times = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        stub(b"", metadata=metadata)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _check_us(access: Access, issuer: Issuer) -> tuple[float, float]:
    """Return what the check of a new token takes, and of one that was checked before, with its limits; both in us."""
    meters = Meters()

    async def check(token: str) -> float:
        started = time.perf_counter()
        meters.of(await access.identify((("authorization", f"Bearer {token}"),), {})).check_call()
        return time.perf_counter() - started

    tokens = [issuer.token(f"subject-{number}", "read") for number in range(_CALLS)]
    first = [await check(token) for token in tokens]
    again = [await check(tokens[0]) for _ in range(10 * _CALLS)]
    return 1e6 * statistics.median(first), 1e6 * statistics.median(again)
