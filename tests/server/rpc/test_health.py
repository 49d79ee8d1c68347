"""A watch of health, step by step: what changes while an answer is on its way is told, too."""

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from limner_server.rpc.health import SERVICES, Health

NOBODY: Any = None
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def statuses(health: Health) -> list[int]:
    """All that a watch tells of a server that goes away while the first answer is being written."""
    watch = health.Watch(health_pb2.HealthCheckRequest(), NOBODY)
    first = await anext(watch)
    health.leave()
    return [first.status, *[reply.status async for reply in watch]]


def test_who_watches_is_told_of_the_end_however_soon_it_comes() -> None:
    health = Health()
    health.serve(SERVICES)
    assert asyncio.run(statuses(health)) == [SERVING, NOT_SERVING]


def test_a_watch_of_what_did_not_serve_yet_ends_as_well() -> None:
    assert asyncio.run(statuses(Health())) == [NOT_SERVING]
